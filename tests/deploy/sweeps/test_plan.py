"""What a sweep consists of: words become points, points become configurations that differ in nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.settings import RunSettings
from deploy.config.errors import ConfigError
from deploy.config.tree import Config
from deploy.sweeps.plan import plan, points, slug


@pytest.fixture
def config(tree: dict[str, Any]) -> Config:
    return Config.model_validate(tree)


def test_words_become_points_in_their_order() -> None:
    found = points(["alpha=0,.25,.999", "grpo", "rloo:kl_beta=.05"])
    assert [point.key for point in found] == ["alpha=0", "alpha=0.25", "alpha=0.999", "grpo", "rloo:kl_beta=0.05"]
    assert found[1].objective == {"name": "alpha_dpg", "alpha": 0.25}
    assert found[4].objective == {"name": "rloo", "kl_beta": 0.05}


def test_a_point_named_twice_is_run_once() -> None:
    assert [point.key for point in points(["alpha=.5", "alpha=0.50,.5"])] == ["alpha=0.5"]


def test_a_study_crosses_staleness_and_correction_but_fresh_samples_need_no_correction() -> None:
    keys = [point.key for point in points(["rloo"], [0, 4], ["sequence", "none"])]
    assert keys == ["rloo @0 sequence", "rloo @4 sequence", "rloo @4 none"]


@pytest.mark.parametrize(
    ("words", "staleness", "corrections", "named"),
    [
        (["alpha=high"], [], [], "'high' is no number"),
        (["grop"], [], [], "must be alpha=… or one of"),
        (["grpo:kl_beta"], [], [], "not key=value"),
        (["grpo"], [-1], [], "within 0 and 1000"),
        (["grpo"], [4], ["whole"], "--correction whole"),
        ([], [], [], "needs objectives"),
    ],
)
def test_what_cannot_be_run_is_said_before_anything_starts(
    words: list[str], staleness: list[int], corrections: list[str], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        points(words, staleness, corrections)


def test_runs_differ_in_their_point_and_seed_only_and_share_the_bases_evaluation(config: Config) -> None:
    runs = plan(config, "trial", points(["alpha=0,1", "grpo"]), 2)
    assert [run.config.run.name for run in runs] == [
        "base-s0", "alpha_0-s0", "alpha_1-s0", "grpo-s0", "base-s1", "alpha_0-s1", "alpha_1-s1", "grpo-s1",
    ]  # fmt: skip
    assert {run.path.parent for run in runs} == {config.run.directory / "trial"}
    first = runs[0].config
    assert first.schedule.steps == 0 and first.evaluation.base
    for run in runs[1:4]:
        assert not run.config.evaluation.base
        same = run.config.model_copy(
            update={
                "run": config.run,
                "evaluation": config.evaluation,
                "learner": run.config.learner.model_copy(update={"objective": config.learner.objective}),
            }
        )
        assert same == config


def test_a_points_alpha_is_not_overruled_by_the_files_schedule(tree: dict[str, Any]) -> None:
    tree["learner"] = {"objective": {"alpha_schedule": [[0.0, 0.0], [1.0, 0.5]]}}
    runs = plan(Config.model_validate(tree), "trial", points(["alpha=.9", "alpha=.5:alpha_schedule=[[0, 1]]", "kl"]), 1)
    assert [run.config.learner.objective.alpha_at(1.0) for run in runs[1:3]] == [0.9, 1.0]


def test_a_point_keeps_of_the_files_objective_what_it_has_itself(tree: dict[str, Any]) -> None:
    """The shared keys for every objective, the others for the same one only: they mean nothing to another."""
    tree["learner"] = {"objective": {"name": "rloo", "kl_beta": 0.1, "truncation": 2.0}}
    chosen = points(["alpha=.25:clip=100", "rloo", "kl", "grpo:kl_beta=.05"])
    found = [run.config.learner.objective for run in plan(Config.model_validate(tree), "trial", chosen, 1)[1:]]
    assert [objective.truncation for objective in found] == [2.0] * 4
    assert [objective.name for objective in found] == ["alpha_dpg", "rloo", "kl", "grpo"]
    assert found[0].diagnostic_weight(0.0) == (0.25, 100.0)
    assert [objective.model_dump()["kl_beta"] for objective in found[1:]] == [0.1, 0.05, 0.05]


def test_long_keys_that_begin_alike_are_runs_of_their_own(config: Config) -> None:
    words = [f"grpo:scale_by_std=false:mean_over_tokens=false:truncation=2.5:kl_beta={beta}" for beta in (0.01, 0.02)]
    runs = plan(config, "trial", points(words), 1)
    assert len({run.path for run in runs}) == 3


def test_forced_staleness_runs_in_lock_step_so_that_it_is_exact(config: Config) -> None:
    changed = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"every": 5})})
    run = plan(changed, "study", points(["rloo"], [16], ["none"]), 1)[1].config
    assert (run.schedule.max_staleness, run.schedule.forced_staleness, run.evaluation.every) == (0, 16, 0)
    assert run.learner.objective.correction == "none"


def test_a_key_that_the_objective_does_not_have_is_named_with_its_point(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"grpo:kl_bta=1.*kl_beta"):
        plan(config, "trial", points(["grpo:kl_bta=1"]), 1)


@pytest.mark.parametrize("key", ["alpha=0.25", "rloo:kl_beta=0.05 @16 none", "a" * 200])
def test_every_name_is_one_a_run_may_have(key: str) -> None:
    assert RunSettings(name=f"{slug(key)}-s12", directory=Path(".")).name
