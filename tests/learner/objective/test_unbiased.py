"""The estimators against the exact oracle: unbiased where they should be, bounded bias where they truncate.

Two kinds of proof. Exact: the expectation over ALL groups of three stale samples is a finite sum, so bias is a
number and not a matter of luck; the bound 2·10⁻⁶ is float32. Sampled: 60,000 samples, each gradient component within
four standard errors, as a user's run would see it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from learner.train.partition import PartitionFunction, PartitionSettings, importance_weights
from tests.learner.objective.objective_cases import (
    ALPHAS,
    SETTINGS,
    Case,
    case,
    cosine,
    draw,
    objective,
    relative_error,
)

EXACT = {"truncation": None, "clip": None}
FLOAT32 = 2e-6


def bias(given: Case, alpha: float, **settings: object) -> float:
    """‖E[ĝ] − g‖ / ‖g‖ over all groups."""
    estimate = given.problem.expected_gradient(objective(alpha=alpha, **settings), given.policy, given.samplers)
    return relative_error(estimate, -given.problem.gradient(given.policy, alpha))


@pytest.mark.parametrize("kind", ["on_policy", "stale"])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("control_variate", ["loo", "min_variance", "none"])
def test_the_gradient_estimate_has_no_bias(kind: str, alpha: float, control_variate: str) -> None:
    for seed, drift in ((0, 0.6), (1, 0.6), (2, 2.0)):
        given = case(kind, seed=seed, drift=drift)
        assert bias(given, alpha, control_variate=control_variate, **EXACT) < FLOAT32


@pytest.mark.parametrize("alpha", ALPHAS)
def test_treating_stale_samples_as_current_ones_fails_the_same_test(alpha: float) -> None:
    stale = case("stale")
    naive = objective(alpha=alpha, correction="none", **EXACT)
    estimate = stale.problem.expected_gradient(naive, stale.policy, stale.samplers)
    true = -stale.problem.gradient(stale.policy, alpha)
    assert relative_error(estimate, true) > 0.1
    assert cosine(estimate, true) < 0.995
    assert bias(case("on_policy"), alpha, correction="none", **EXACT) < FLOAT32


@pytest.mark.parametrize("kind", ["on_policy", "stale"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_sampled_gradients_are_within_four_standard_errors(kind: str, alpha: float) -> None:
    given = case(kind)
    sequences, outputs = draw(given, 20_000)
    scores = given.space.scores(given.policy).sum(1)[outputs]
    true = -given.problem.gradient(given.policy, alpha)
    values = objective(alpha=alpha, **EXACT)(sequences).values.double()
    per_group = (values * scores).view(20_000, 3, -1).mean(1)
    mean, error = per_group.mean(0), per_group.std(0) / 20_000**0.5
    assert ((mean - true).abs() <= 4 * error + 1e-7).all()
    # The angle's own error: noise of norm ‖error‖ across a gradient of norm ‖true‖.
    assert cosine(mean, true) > 1 - (4 * float(error.norm() / true.norm())) ** 2
    if kind == "stale" and alpha in (0.0, 0.5, 1.0):
        naive = objective(alpha=alpha, correction="none", **EXACT)(sequences).values.double()
        per_group = (naive * scores).view(20_000, 3, -1).mean(1)
        mean, error = per_group.mean(0), per_group.std(0) / 20_000**0.5
        assert ((mean - true).abs() / error.clamp(min=1e-7)).max() > 8


def test_a_baseline_without_the_ratio_is_biased() -> None:
    """At α = 0 the weight needs no ratio; its control variate still does."""
    stale = case("stale")
    sequences, outputs = draw(stale, 20_000)
    scores = stale.space.scores(stale.policy).sum(1)[outputs]
    true = -stale.problem.gradient(stale.policy, 0.0)
    plain = objective(alpha=0.0, control_variate="none", **EXACT)(sequences).values.double()
    without = plain - plain.view(-1, 3).sum(1).repeat_interleave(3)[:, None] / 2 + plain / 2
    per_group = (without * scores).view(20_000, 3, -1).mean(1)
    error = per_group.std(0) / 20_000**0.5
    assert ((per_group.mean(0) - true).abs() / error.clamp(min=1e-7)).max() > 8


@pytest.mark.parametrize("alpha", ALPHAS)
def test_on_policy_it_is_the_papers_estimator(alpha: float) -> None:
    """arXiv 2512.05962: coefficient r_i − mean_{j≠i} r_j with r = min((p/π)^{1−α}, 10)."""
    given = case("on_policy")
    sequences, outputs = draw(given, 500)
    for correction in ("sequence", "mask", "none"):
        values = objective(alpha=alpha, correction=correction, control_variate="loo")(sequences).values[:, 0].double()
        pi = given.space.log_probs(given.policy).sum(1).exp()[outputs]
        reward = ((given.problem.target[outputs] / pi) ** (1 - alpha)).clamp(max=10)
        reward = torch.where(sequences.passed, reward, 0.0)
        others = (reward.view(-1, 3).sum(1).repeat_interleave(3) - reward) / 2
        assert torch.allclose(values, reward - others, atol=1e-5)


@pytest.mark.parametrize("correction", ["token", "band", "mask"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_other_corrections_are_exact_on_policy(correction: str, alpha: float) -> None:
    assert bias(case("on_policy"), alpha, correction=correction, clip=None) < FLOAT32


def test_the_token_correction_is_exact_at_alpha_zero_and_better_than_none_at_every_alpha() -> None:
    stale = case("stale")
    assert bias(stale, 0.0, correction="token", **EXACT) < FLOAT32
    for alpha in ALPHAS:
        assert bias(stale, alpha, correction="token", **EXACT) < 0.9 * bias(stale, alpha, correction="none", **EXACT)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("control_variate", ["loo", "min_variance", "none"])
def test_truncation_and_clip_bias_no_more_than_the_mass_they_remove(alpha: float, control_variate: str) -> None:
    """‖bias‖ ≤ max ‖∇log π‖ · (E[W − W_used] + max c · E[(ρ − C)₊]), and it vanishes as the limits loosen."""
    stale = case("stale", drift=1.0)
    problem, space = stale.problem, stale.space
    largest_score = float(space.scores(stale.policy).sum(1).norm(dim=1).max())
    log_pi = space.log_probs(stale.policy).sum(1)
    true = -problem.gradient(stale.policy, alpha)
    biases = []
    for limit in (1.0, 2.0, 5.0, 1e4):
        settings = {"alpha": alpha, "control_variate": control_variate, "truncation": limit, "clip": limit}
        estimate = problem.expected_gradient(objective(**settings), stale.policy, stale.samplers)
        removed = 0.0
        for sampler in stale.samplers:
            log_mu = sampler.sum(1)
            mu, rho = log_mu.exp(), (log_pi - log_mu).exp()
            ratio = torch.where(problem.right, problem.target / mu, 0.0) ** (1 - alpha)
            ratio = torch.where(problem.right, ratio, 0.0)
            used = (ratio * rho.clamp(max=limit) ** alpha).clamp(max=limit)
            largest_c = {"none": 0.0, "loo": limit, "min_variance": 1.0}[control_variate]
            removed += float((mu * (ratio * rho**alpha - used)).sum())
            removed += largest_c * float((mu * (rho - limit).clamp(min=0)).sum())
        biases.append(float((estimate - true).norm()))
        assert biases[-1] <= largest_score * removed / 3 + 1e-6
    assert biases[-1] < FLOAT32


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_pooled_z_keeps_the_gradients_length_and_z_from_the_same_group_does_not(alpha: float) -> None:
    """A wrong Ẑ scales a prompt's gradient by Z^{−(1−α)}; Ẑ of the very same three samples also follows their
    weights."""
    stale = case("on_policy")
    sequences, outputs = draw(stale, 20_000)
    scores = stale.space.scores(stale.policy).sum(1)[outputs]
    true = -stale.problem.gradient(stale.policy, alpha)
    log_base = stale.problem.log_base[outputs].numpy()
    log_sampler = sequences.sampler.sum(1).numpy()
    weights = importance_weights(log_base, log_sampler, sequences.passed.numpy(), None)

    def length(mode: str) -> float:
        """Estimated gradient along the true one, as a share of it."""
        partition = PartitionFunction(PartitionSettings(mode=mode, largest_weight=None))
        prompts = np.zeros(len(weights), dtype=np.int64) if mode == "pooled" else sequences.group.numpy()
        log_z = torch.from_numpy(partition.log_z(prompts, weights))
        values = objective(alpha=alpha, **EXACT)(replace(sequences, log_z=log_z)).values.double()
        return float((values * scores).mean(0) @ true / (true @ true))

    assert length("pooled") == pytest.approx(1, abs=0.05)
    assert abs(length("group") - 1) > 0.1


def test_the_min_variance_control_variate_tames_untruncated_stale_groups() -> None:
    stale = case("stale", drift=1.0)
    sequences, outputs = draw(stale, 20_000)
    scores = stale.space.scores(stale.policy).sum(1)[outputs]

    def variance(control_variate: str) -> float:
        values = objective(alpha=0.25, control_variate=control_variate, **EXACT)(sequences).values.double()
        return float((values * scores).view(20_000, 3, -1).mean(1).var(0).sum())

    assert variance("min_variance") < variance("loo")


def test_the_schedule_moves_alpha_while_training() -> None:
    sequences, _ = draw(case("stale"), 50)
    moving = objective(alpha_schedule=((0.2, 1.0), (0.6, 0.0)))
    for progress, alpha in ((0.0, 1.0), (0.2, 1.0), (0.4, 0.5), (0.6, 0.0), (1.0, 0.0)):
        found = moving(sequences, replace(moving.context, progress=progress))
        assert float(found.diagnostics["alpha"]) == pytest.approx(alpha)
        assert torch.allclose(found.values, objective(alpha=alpha)(sequences).values, atol=1e-5)


def test_settings_refuse_what_has_no_meaning() -> None:
    for wrong in (
        {"alpha": 1.1}, {"truncation": 0.5}, {"clip": 0.0}, {"name": "pass_at_k", "pass_k": 0}, {"name": "ppo"},
        {"alfa": 0.5}, {"name": "grpo", "alpha": 0.5}, {"pass_k": 4},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            SETTINGS.validate_python(wrong)
    with pytest.raises(ValueError, match="increase strictly"):
        SETTINGS.validate_python({"alpha_schedule": [[0.5, 1.0], [0.5, 0.0]]})
