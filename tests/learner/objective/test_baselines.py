"""The baselines estimate what their papers say, on-policy and stale, through the same interface as α-DPG."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from learner.objective.exact import ExactProblem, OutputSpace
from tests.learner.objective.objective_cases import (
    Case,
    case,
    cosine,
    draw,
    objective,
    own,
    random_sequences,
    relative_error,
)

FLOAT32 = 2e-6


def ascent(given: Case, **settings: object) -> torch.Tensor:
    return given.problem.expected_gradient(objective(truncation=None, **settings), given.policy, given.samplers)


@pytest.mark.parametrize("kind", ["on_policy", "stale"])
@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"name": "rloo"}, 1.0),
        ({"name": "remax"}, 1.0),
        ({"name": "rejection"}, 1.0),
        # A mean that includes the sample itself shrinks the gradient by (n − 1)/n and leaves its direction.
        ({"name": "dr_grpo"}, 2 / 3),
        ({"name": "grpo", "scale_by_std": False, "mean_over_tokens": False}, 2 / 3),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_reinforce_baselines_climb_the_pass_rate(kind: str, settings: dict[str, object], scale: float) -> None:
    given = case(kind)
    assert relative_error(ascent(given, **settings), scale * given.problem.pass_rate_gradient(given.policy)) < FLOAT32


@pytest.mark.parametrize("name", ["rloo", "remax", "dr_grpo", "grpo"])
def test_their_uncorrected_versions_do_not(name: str) -> None:
    stale = case("stale")
    settings = {"scale_by_std": False, "mean_over_tokens": False} if name == "grpo" else {}
    found = ascent(stale, name=name, correction="none", **settings)
    assert cosine(found, stale.problem.pass_rate_gradient(stale.policy)) < 0.995


@pytest.mark.parametrize("kind", ["on_policy", "stale"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_pass_at_k_training_climbs_pass_at_k(kind: str, k: int) -> None:
    given = case(kind)
    true = given.problem.pass_rate_gradient(given.policy, k)
    assert relative_error(ascent(given, name="pass_at_k", pass_k=k), true) < FLOAT32


def test_pass_at_one_is_rloo_on_policy() -> None:
    sequences, _ = draw(case("on_policy"), 100)
    found = objective(name="pass_at_k", pass_k=1)(sequences).values
    assert torch.allclose(found, objective(name="rloo")(sequences).values, atol=1e-5)


def test_pass_at_k_of_a_group_with_fewer_than_k_trains_its_own_size() -> None:
    given = case("stale")
    true = given.problem.pass_rate_gradient(given.policy, 3)
    assert relative_error(ascent(given, name="pass_at_k", pass_k=64), true) < FLOAT32


def test_pass_at_k_stays_finite_for_large_groups() -> None:
    sequences = random_sequences([256, 100], scale=0.5)
    assert torch.isfinite(objective(name="pass_at_k", pass_k=128)(sequences).values).all()


@pytest.mark.parametrize("kind", ["on_policy", "stale"])
@pytest.mark.parametrize(("name", "kl_beta", "beta"), [("kl", None, 0.05), ("kl", 0.3, 0.3), ("rloo", 0.3, 0.3)])
def test_the_kl_penalty_is_in_the_gradient(kind: str, name: str, kl_beta: float | None, beta: float) -> None:
    given = case(kind)
    true = given.problem.pass_rate_gradient(given.policy, beta=beta)
    settings = {} if kl_beta is None else {"kl_beta": kl_beta}
    assert relative_error(ascent(given, name=name, **settings), true) < FLOAT32


def test_rloo_is_alpha_dpg_at_alpha_one() -> None:
    sequences, _ = draw(case("stale"), 200)
    for correction in ("sequence", "mask"):
        alpha_one = objective(alpha=1.0, control_variate="loo", correction=correction)(sequences).values
        rloo = objective(name="rloo", correction=correction)(sequences).values
        assert torch.allclose(alpha_one, rloo, atol=1e-6)


def test_trajectory_balance_is_the_kl_gradient_on_policy_and_at_rest_at_its_optimum_for_any_behaviour() -> None:
    given = case("on_policy")
    true = given.problem.pass_rate_gradient(given.policy, beta=0.05)
    assert relative_error(ascent(given, name="tba"), true * 2 / 3) < FLOAT32
    # One token: p_β ∝ π_b e^{v/β} is representable; there every residual, stale or not, is the same.
    space = OutputSpace(4, 1)
    base = torch.tensor([[0.0, 0.5, 1.0, -1.0]], dtype=torch.float64)
    right = torch.tensor([True, False, True, False])
    problem = ExactProblem(space, base, right)
    optimum = base + right[space.tokens[:, 0].argsort()].double() / 0.5
    sampler = space.log_probs(torch.zeros_like(base))
    rest = problem.expected_gradient(objective(name="tba", kl_beta=0.5), optimum, (sampler,) * 3)
    assert float(rest.norm()) < 1e-6


def test_grpo_standardises_within_the_group_and_averages_over_the_answers_own_tokens() -> None:
    sequences = random_sequences([4], scale=0.0)
    reward = sequences.passed.float()
    expected = (reward - reward.mean()) / (reward.std(correction=0) + 1e-6) * 3 / sequences.tokens
    found = objective(name="grpo")(sequences).values[:, 0]
    assert 0 < float(reward.mean()) < 1
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "remax", "gpg", "unlikeliness"])
@pytest.mark.parametrize("passed", [True, False])
def test_groups_that_agree_give_no_gradient(name: str, passed: bool) -> None:
    sequences = random_sequences([4, 3], scale=0.0, passed=passed)
    found = objective(**own(name, rank_beta=0.0))(sequences).values
    assert torch.allclose(found, torch.zeros_like(found), atol=1e-6)


def test_gpg_makes_up_for_groups_without_gradient() -> None:
    sequences = random_sequences([4, 4], scale=0.0)
    passed = torch.tensor([True, False, True, False, True, True, True, True])
    sequences = replace(sequences, passed=passed)
    found = objective(name="gpg")(sequences).values[:, 0]
    assert torch.allclose(found, torch.tensor([1.0, -1, 1, -1, 0, 0, 0, 0]))


def test_gpg_scales_by_the_whole_step_and_not_by_what_it_is_given() -> None:
    """Groups of a micro-batch all have both answers; of the step's, one in four has."""
    sequences = replace(random_sequences([4], scale=0.0), passed=torch.tensor([True, False, True, False]))
    gpg = objective(name="gpg")
    quarter = replace(gpg.context, mixed_share=0.25)
    assert torch.allclose(gpg.values(sequences, quarter)[:, 0], torch.tensor([2.0, -2, 2, -2]))
    assert torch.allclose(gpg.values(sequences)[:, 0], torch.tensor([0.5, -0.5, 0.5, -0.5]))
    penalised = objective(name="gpg", kl_beta=0.1)
    found = penalised.values(sequences, replace(penalised.context, mixed_share=0.25))
    assert torch.allclose(found, objective(name="dr_grpo", kl_beta=0.1).values(sequences))


def test_unlikeliness_prefers_the_rare_of_two_right_answers() -> None:
    sequences = random_sequences([6], scale=0.0, passed=True)
    found = objective(name="unlikeliness", mean_over_tokens=False)(sequences).values[:, 0]
    likely = torch.where(sequences.mask, sequences.sampler, 0.0).sum(1)
    assert (found[likely.argsort()].diff() < 0).all()
    worst, best = found[likely.argmax()], found[likely.argmin()]
    reward = torch.arange(6) / 6 * 0.25
    assert float(best - worst) == pytest.approx(float(reward.max() / reward.std(correction=0)), rel=1e-3)
