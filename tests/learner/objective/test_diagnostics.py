"""The diagnostics measure what their names say, against closed forms and the exact oracle."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from learner.objective.diagnostics import alpha_divergence, divergences, effective_share, pass_rates
from learner.objective.settings import OBJECTIVES
from learner.step_record import StepRecord
from tests.learner.objective.objective_cases import case, draw, objective, own, random_sequences


@pytest.mark.parametrize("spread", [0.5, 1.0])
@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75, 1.0])
def test_effective_share_of_log_normal_ratios_is_known(spread: float, alpha: float) -> None:
    """ESS of ρ^α is e^{−α²s²}: alpha is the exponent of staleness."""
    normal = torch.distributions.Normal(0.0, 1.0)
    quantiles = normal.icdf((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)
    share = effective_share(alpha * spread * quantiles)
    assert float(share) == pytest.approx(math.exp(-((alpha * spread) ** 2)), rel=0.02)


def test_effective_share_is_safe_at_the_extremes() -> None:
    assert float(effective_share(torch.tensor([1e4, -1e4]))) == pytest.approx(0.5)
    assert float(effective_share(torch.full((5,), -1e4))) == pytest.approx(1)
    assert float(effective_share(torch.zeros(0))) == 0


@pytest.mark.parametrize("kind", ["on_policy", "stale"])
def test_divergence_estimates_find_the_exact_divergences(kind: str) -> None:
    given = case(kind)
    sequences, _ = draw(given, 30_000)
    found, exact = divergences(sequences), given.problem.divergences(given.policy)
    assert found.keys() == exact.keys()
    for name, value in exact.items():
        assert float(found[name]) == pytest.approx(value, abs=0.05), name


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_mean_reward_estimate_finds_the_exact_one_within_its_error(alpha: float) -> None:
    given = case("stale")
    sequences, _ = draw(given, 10_000)
    found = objective(alpha=alpha, truncation=None, clip=None)(sequences).diagnostics
    exact = float(given.problem.expected_reward(given.policy, alpha))
    assert abs(float(found["mean_r"]) - exact) < 4 * float(found["mean_r_error"])
    assert float(found["mean_r_alarm"]) == 0


def test_a_wrong_behaviour_log_probability_raises_the_calibration_alarm() -> None:
    sequences, _ = draw(case("stale"), 2_000)
    shifted = replace(sequences, sampler=torch.where(sequences.mask, sequences.sampler - 1.0, 0.0))
    assert float(objective()(shifted).diagnostics["mean_r_alarm"]) == 1


def test_a_wrong_partition_function_raises_the_calibration_alarm() -> None:
    sequences, _ = draw(case("on_policy"), 2_000)
    assert float(objective(alpha=0.25)(sequences).diagnostics["mean_r_alarm"]) == 0
    wrong = replace(sequences, log_z=sequences.log_z - math.log(20))
    assert float(objective(alpha=0.25)(wrong).diagnostics["mean_r_alarm"]) == 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_admission_goes_by_is_the_sample_size_of_the_ratios_that_weigh(name: str) -> None:
    sequences = random_sequences([8] * 8)
    found = objective(**own(name, alpha=0.25))(sequences).diagnostics[OBJECTIVES[name].staleness_ess]
    exponent = 0.25 if name == "alpha_dpg" else 1.0
    weights = (exponent * sequences.log_rho.double()).exp()
    assert float(found) == pytest.approx(float(weights.sum() ** 2 / (weights**2).sum() / len(weights)), rel=1e-4)


def test_every_diagnostic_is_a_field_of_the_step_record() -> None:
    found = objective()(random_sequences([8] * 8)).diagnostics
    assert {name for name in found if "/" not in name} < StepRecord.model_fields.keys()


def test_another_objective_is_measured_with_the_weight_of_the_default_one() -> None:
    sequences = random_sequences([8] * 8)
    ours, theirs = (objective(name=name)(sequences).diagnostics for name in ("alpha_dpg", "grpo"))
    for name in ("alpha", "ess_weight", "clipped_share", "clipped_mass", "mean_r", "alpha_divergence"):
        assert torch.equal(ours[name], theirs[name])


def test_staleness_buckets_split_the_batch_and_its_gradient() -> None:
    sequences = replace(random_sequences([4, 4]), staleness=torch.tensor([0, 0, 1, 3, 5, 20, 64, 10_000]))
    found = objective()(sequences).diagnostics
    samples = {name.split("/")[1]: float(value) for name, value in found.items() if name.startswith("samples/")}
    assert samples == {"0": 2, "1": 1, "2-3": 1, "4-7": 1, "16-63": 1, "64+": 2}
    shares = [float(value) for name, value in found.items() if name.startswith("gradient_share/")]
    assert sum(shares) == pytest.approx(1, abs=1e-5)


def test_truncation_and_clip_are_reported() -> None:
    sequences = random_sequences([8], scale=0.0, passed=True)
    far = replace(
        sequences,
        policy=torch.where(sequences.mask, -0.1, 0.0),
        sampler=torch.where(sequences.mask, -0.1 - 3.0 / sequences.tokens[:, None], 0.0),
    )
    found = objective(truncation=2.0, alpha=1.0)(far).diagnostics
    assert float(found["truncated_share"]) == 1
    assert float(found["clipped_mass"]) == pytest.approx(1 - 2 / math.exp(3), rel=1e-4)
    loose = objective(truncation=None, clip=None, alpha=1.0)(far).diagnostics
    assert float(loose["truncated_share"]) == float(loose["clipped_mass"]) == 0
    clipped = objective(truncation=None, clip=10.0, alpha=1.0)(far).diagnostics
    assert float(clipped["clipped_share"]) == 1


@pytest.mark.parametrize("kind", ["on_policy", "stale"])
@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_the_alpha_divergence_estimate_finds_the_exact_loss(kind: str, alpha: float) -> None:
    given = case(kind)
    sequences, _ = draw(given, 30_000)
    exact = (1 - float(given.problem.expected_reward(given.policy, alpha))) / alpha
    assert float(alpha_divergence(sequences, alpha)) == pytest.approx(exact, abs=0.05)


def test_the_alpha_divergence_at_zero_is_the_forward_divergence() -> None:
    sequences, _ = draw(case("stale"), 2_000)
    assert float(alpha_divergence(sequences, 0.0)) == float(divergences(sequences)["forward_kl"])


def test_pass_rates_are_told_apart_by_the_difficulty_of_the_prompt() -> None:
    sequences = draw(case("on_policy"), 400)[0].select(torch.arange(400))
    z = torch.tensor([0.95, 0.5, 0.2, 0.01]).repeat_interleave(100)
    passed = torch.arange(400) % 100 < torch.tensor([90, 50, 20, 0]).repeat_interleave(100)
    found = pass_rates(replace(sequences, log_z=z.log(), passed=passed))
    rates = [float(found[f"pass_rate/{name}"]) for name in ("easy", "medium", "hard", "hardest")]
    assert rates == pytest.approx([0.9, 0.5, 0.2, 0.0])
    assert pass_rates(replace(sequences, log_z=torch.full((400,), -1.0))).keys() == {
        "pass_rate/medium", "count/medium",
    }  # fmt: skip
