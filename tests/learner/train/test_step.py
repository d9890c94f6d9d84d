"""The step on one rank: it learns, refuses what is not finite, keeps base scores; damaged checkpoints are refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from broker.queue.state import Group
from learner.batch.samples import Samples
from learner.epoch_files import Journal, epochs, own
from learner.metrics import step_record, whole_step
from learner.model.checkpoint import CheckpointCorrupt, CheckpointName, Checkpoints, Progress
from learner.model.model import full_state, load, shard
from learner.objective.registry import build
from learner.objective.sequences import quantities
from learner.ranks import Ranks
from learner.settings import LearnerSettings, OptimizerSettings
from learner.step_record import StepRecord
from learner.train.partition import PartitionFunction
from learner.train.step import Report, Trainer
from tests.learner.learner_rig import make_groups, save_model


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    world = Ranks("cpu", 60)
    yield world
    world.close()


def make_trainer(model_path: Path, ranks: Ranks) -> Trainer:
    settings = LearnerSettings(micro_batch_tokens=64, optimizer=OptimizerSettings(lr=0.02, warmup_steps=2))
    policy = shard(load(model_path, torch.float32), ranks.mesh, compute=torch.float32, trainable=True)
    base = shard(load(model_path, torch.float32), ranks.mesh, compute=torch.float32, trainable=False)
    return Trainer(
        settings, ranks, policy, base, build(settings.objective, length_norm=6.0), PartitionFunction(settings.partition)
    )


@pytest.fixture
def trainer(model_path: Path, ranks: Ranks) -> Trainer:
    return make_trainer(model_path, ranks)


@pytest.fixture(scope="module")
def trained(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    """A trainer and the directory of its checkpoints of steps 1 and 2; tests damage copies of it."""
    path = tmp_path_factory.mktemp("trained")
    trainer = make_trainer(save_model(path / "base"), ranks)
    store = Checkpoints(path / "checkpoints", ranks)
    for step in (1, 2):
        take(trainer, step)
        store.save(Progress(step, "f", trainer.partition.pack()), 1, trainer.policy, trainer.optimizer)
    return trainer, path / "checkpoints"


def samples_of(groups: list[Group]) -> Samples:
    return Samples.of(groups, [np.arange(3, 6, dtype=np.int32)] * len(groups), list(range(len(groups))))


def take(trainer: Trainer, step: int, groups: list[Group] | None = None) -> tuple[Samples, Report]:
    samples = samples_of(make_groups(6, 4, seed=step) if groups is None else groups)
    return samples, trainer.step(samples, step=step, progress=0.5)


@pytest.mark.slow
def test_steps_move_probability_to_answers_that_pass(trainer: Trainer, model_path: Path) -> None:
    def mass() -> float:
        whole = load(model_path, torch.float32)
        whole.load_state_dict(full_state(trainer.policy, torch.float32, keep=True))
        with torch.no_grad():
            logits = whole(torch.arange(3, 6)[None]).logits[0, -1]
        return float(logits.softmax(-1)[::2].sum())

    before = mass()
    for step in range(1, 16):
        _, report = take(trainer, step)
        assert not report.refused and math.isfinite(report.loss) and report.grad_norm > 0
    assert mass() > before + 0.15


def test_warm_up_rises_to_the_rate(trainer: Trainer) -> None:
    assert [take(trainer, step)[1].lr for step in (1, 2, 3)] == [0.01, 0.02, 0.02]


def test_base_scores_are_computed_once_and_frozen(trainer: Trainer) -> None:
    samples, _ = take(trainer, 1)
    first = [np.array(values) for values in samples.base]
    groups = make_groups(6, 4, seed=1)
    again = samples_of(groups)
    trainer.step(again, step=2, progress=0.5)  # the policy has moved, the base has not
    for left, right in zip(first, again.base, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)
    given = samples_of(groups)
    given.base = [np.full_like(values, -1.0) for values in given.sampler]
    trainer.step(given, step=3, progress=0.5)
    assert all((values == -1.0).all() for values in given.base if values is not None)


def test_z_is_pooled_over_visits_and_counts_each_sample_once(trainer: Trainer) -> None:
    for step in (1, 2):
        take(trainer, step)
    assert [trainer.partition.statistics(prompt).count for prompt in range(6)] == [8] * 6


@pytest.mark.parametrize("where", ["policy", "base", "gradient"])
@pytest.mark.slow
def test_a_step_with_a_non_finite_number_changes_nothing(trainer: Trainer, ranks: Ranks, where: str) -> None:
    take(trainer, 1)
    before = {name: tensor.clone() for name, tensor in full_state(trainer.policy, torch.float32, keep=True).items()}
    moments = [value["exp_avg"].to_local().clone() for value in trainer.optimizer.state.values()]
    handle: Any = None
    if where == "gradient":
        weight = next(iter(trainer.policy.parameters()))
        handle = weight.register_post_accumulate_grad_hook(lambda p: p.grad.to_local().fill_(torch.inf))
    else:
        model = trainer.policy if where == "policy" else trainer.base
        handle = model.head.register_forward_hook(lambda module, inputs, output: output * torch.nan)
    _, report = take(trainer, 2)
    handle.remove()
    assert "non-finite" in report.refused
    after = full_state(trainer.policy, torch.float32, keep=True)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    for old, new in zip(moments, trainer.optimizer.state.values(), strict=True):
        assert torch.equal(old, new["exp_avg"].to_local())
    _, report = take(trainer, 3)
    assert not report.refused


def test_a_refused_gradient_names_its_parameter(trainer: Trainer) -> None:
    name, weight = list(trainer.policy.causal_lm.named_parameters())[3]
    weight.register_post_accumulate_grad_hook(lambda p: p.grad.to_local().fill_(torch.nan))
    assert name in take(trainer, 1)[1].refused


def test_a_step_without_completions_is_refused_by_name(trainer: Trainer) -> None:
    assert take(trainer, 1, [])[1].refused == "no completions"


def test_the_mismatch_is_measured_on_the_freshest_samples(trainer: Trainer, ranks: Ranks) -> None:
    """Uniform draws under a policy that is not uniform: |log π − log μ| of exactly these tokens."""
    samples, report = take(trainer, 1, make_groups(4, 4))
    sequences = whole_step(ranks, report)
    assert sequences is not None
    record = step_record(sequences, report, trainer.objective, step=1, version=1, progress=0.5, current=True)
    gaps = np.concatenate([np.abs(b - m) for b, m in zip(samples.base, samples.sampler, strict=True)])
    assert record.mismatch_mean == pytest.approx(gaps.mean(), rel=1e-4)
    assert record.mismatch_max == pytest.approx(gaps.max(), rel=1e-4)
    stale = step_record(sequences, report, trainer.objective, step=1, version=1, progress=0.5, current=False)
    assert (record.mismatch_staleness, stale.mismatch_staleness) == (0, 1)
    assert record.entropy == pytest.approx(-np.concatenate(samples.base).mean(), rel=1e-4)
    assert record.tokens == samples.tokens and record.groups == 4
    of_the_service = {"canary_mean", "canary_max", "z_narrow_share", "admitted_staleness"}
    assert {name for name, value in record if value is None} == of_the_service
    assert StepRecord.model_validate(record.plain()) == record


def test_a_quantity_that_nobody_provides_stops_the_step(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field of Sequences that neither the samples nor the step have must not be left out silently."""
    monkeypatch.setattr("learner.train.step.quantities", lambda: {**quantities(), "answer": {}})
    with pytest.raises(AttributeError, match="'answer'"):
        take(trainer, 1)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def tensors_of(path: Path) -> Path:
    return next(path.glob("__0_*"))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit": (lambda path: flip(tensors_of(path)), "expected sha256"),
    "truncated": (lambda path: tensors_of(path).write_bytes(b"x"), "bytes, found 1"),
    "missing file": (lambda path: tensors_of(path).unlink(), "found no file"),
    "missing manifest": (lambda path: (path / "manifest.json").unlink(), "manifest.json cannot be read"),
    "half a manifest": (lambda path: (path / "manifest.json").write_text('{"schema": 1'), "manifest.json is not JSON"),
    "another schema": (lambda path: (path / "manifest.json").write_text('{"schema": 9}'), "not of schema 2"),
    "no files listed": (
        lambda path: (path / "manifest.json").write_text(
            json.dumps(json.loads((path / "manifest.json").read_text()) | {"files": {}})
        ),
        "does not list",
    ),
    "state": (lambda path: flip(path / "state.msgpack"), "state.msgpack: expected sha256"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.slow
def test_a_damaged_checkpoint_is_refused_with_the_remedy(
    trained: tuple[Trainer, Path], ranks: Ranks, tmp_path: Path, damage: str
) -> None:
    trainer, checkpoints = trained
    store = Checkpoints(shutil.copytree(checkpoints, tmp_path / "checkpoints"), ranks)
    spoil, message = DAMAGE[damage]
    spoil(store.directory(CheckpointName(2, 1)))
    with pytest.raises(CheckpointCorrupt) as caught:
        store.load(CheckpointName(2, 1), trainer.policy, trainer.optimizer, fingerprint="f", remedy="Go back")
    assert message in str(caught.value) and str(caught.value).endswith(". Go back")
    assert store.load(CheckpointName(1, 1), trainer.policy, trainer.optimizer, fingerprint="f").step == 1


def test_a_checkpoint_brings_back_weights_moments_z_and_random_state(
    trainer: Trainer, ranks: Ranks, tmp_path: Path
) -> None:
    store = Checkpoints(tmp_path / "checkpoints", ranks)
    take(trainer, 1)
    saved = Progress(1, "f", trainer.partition.pack())
    store.save(saved, 1, trainer.policy, trainer.optimizer)
    expected_draw = torch.rand(3)
    _, report = take(trainer, 2)
    after = {name: tensor.clone() for name, tensor in full_state(trainer.policy, torch.float32, keep=True).items()}

    assert store.load(CheckpointName(1, 1), trainer.policy, trainer.optimizer, fingerprint="f") == saved
    assert torch.equal(torch.rand(3), expected_draw)
    trainer.partition.load(saved.z)
    _, again = take(trainer, 2)
    assert (again.loss, again.grad_norm) == (report.loss, report.grad_norm)
    found = full_state(trainer.policy, torch.float32, keep=True)
    assert all(torch.equal(found[name], tensor) for name, tensor in after.items())


def test_a_checkpoint_of_another_run_is_refused(trainer: Trainer, ranks: Ranks, tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "checkpoints", ranks)
    store.save(Progress(1, "f" * 12), 1, trainer.policy, trainer.optimizer)
    with pytest.raises(CheckpointCorrupt, match=r"choose another run\.name"):
        store.load(CheckpointName(1, 1), trainer.policy, trainer.optimizer, fingerprint="g" * 12)


def test_a_save_that_died_half_way_is_not_a_checkpoint(trainer: Trainer, ranks: Ranks, tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "checkpoints", ranks)

    def save(step: int, epoch: int) -> CheckpointName:
        return store.save(Progress(step, "f"), epoch, trainer.policy, trainer.optimizer)

    first = save(1, 1)
    half = tmp_path / "checkpoints" / ".step-00000002-e0001.partial"
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(b"half")
    assert store.names() == [first]
    second = save(2, 1)
    assert save(2, 1) == second  # again, after a commit whose reply was lost: it stays


def test_each_learner_has_its_own_checkpoints_and_sweeps_only_what_came_before(
    trainer: Trainer, ranks: Ranks, tmp_path: Path
) -> None:
    store = Checkpoints(tmp_path / "checkpoints", ranks)

    def save(step: int, epoch: int) -> CheckpointName:
        return store.save(Progress(step, "f"), epoch, trainer.policy, trainer.optimizer)

    committed, unnamed, later = save(2, 1), save(3, 1), save(3, 3)
    (tmp_path / "checkpoints" / ".step-00000004-e0003.partial").mkdir()
    half = tmp_path / "checkpoints" / ".step-00000004-e0001.partial"
    half.mkdir()
    before = (store.directory(unnamed) / "manifest.json").read_bytes()
    again = save(3, 2)
    assert (store.directory(unnamed) / "manifest.json").read_bytes() == before
    store.keep([committed, again], 2)
    assert store.names() == [committed, again, later]
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").glob(".*")) == [".step-00000004-e0003.partial"]


def record_of(step: int, **values: float) -> dict[str, object]:
    return StepRecord(step=step, version=0, time=0.0, **values).plain()


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_the_journal_lists_no_step_twice_after_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, 1, "step", lambda line: True)
    for step in (1, 2, 3):
        journal.append(record_of(step, loss=float("nan"), by_staleness={"ess_rho/0": float("inf")}))
    with open(own(path, 1), "a") as file:
        file.write('{"step": 4, "lo')
    again = Journal(path, 2, "step", lambda line: line["step"] <= 2)
    assert again.keys == {1, 2}
    again.append(record_of(3))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[0]["loss"] is None and lines[0]["by_staleness"] == {"ess_rho/0": None} and "lr" not in lines[0]


def test_whatever_a_replaced_learner_writes_its_successors_lines_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    zombie = Journal(path, 1, "step", lambda line: True)
    zombie.append(record_of(1))
    zombie.append(record_of(2))
    holder = Journal(path, 2, "step", lambda line: line["step"] <= 1)
    zombie.append(record_of(3))  # between two lines of its successor, which has deleted its file
    holder.append(record_of(2))
    zombie.append(record_of(4))
    assert steps_in(path) == [1, 2] and epochs(path) == [2]
    # One that was paused before it began: its file is of an earlier epoch, and the link stays on the newest.
    late = Journal(path, 1, "step", lambda line: True)
    late.append(record_of(9))
    assert steps_in(path) == [1, 2]
    last = Journal(path, 3, "step", lambda line: True)
    last.append(record_of(3))
    assert steps_in(path) == [1, 2, 3]


def test_a_link_that_a_replaced_learner_moved_is_mended_with_the_next_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    holder = Journal(path, 2, "step", lambda line: True)
    holder.append(record_of(1))
    own(path, 1).write_text("")
    path.unlink()
    path.symlink_to(own(path, 1).name)  # killed between its look and its link
    holder.append(record_of(2))
    assert steps_in(path) == [1, 2]
