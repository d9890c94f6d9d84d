"""The oracle agrees with the definitions it is written from, so that it may judge the estimators."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.objective.exact import ExactProblem, OutputSpace
from tests.learner.objective.objective_cases import ALPHAS, case


def test_every_output_is_there_once_and_they_share_all_probability() -> None:
    space = OutputSpace(4, 3)
    logits = torch.randn(space.prefixes, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert len(space) == 1 + 3 + 9 * 4
    assert float(space.log_probs(logits).sum(1).exp().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_the_loss_is_one_minus_alpha_times_the_amari_divergence(alpha: float) -> None:
    given_case = case("on_policy")
    problem, pi = given_case.problem, given_case.space.log_probs(given_case.policy).sum(1).exp()
    p = problem.target
    # f(t)·p with t = π/p; where p = 0 the term is its limit, π·lim f(t)/t, which is −1/(α−1) per unit of π for α < 1.
    t = pi[problem.right] / p[problem.right]
    f = (t**alpha - alpha * t - (1 - alpha)) / (alpha * (alpha - 1))
    divergence = (p[problem.right] * f).sum() + pi[~problem.right].sum() / (1 - alpha)
    assert float(problem.loss(given_case.policy, alpha)) == pytest.approx(float((1 - alpha) * divergence), rel=1e-12)


def test_both_limits_of_the_loss_are_reached_without_a_jump() -> None:
    given_case = case("on_policy")
    problem, policy = given_case.problem, given_case.policy
    assert float(problem.loss(policy, 1e-7)) == pytest.approx(float(problem.loss(policy, 0.0)), rel=1e-5)
    assert float(problem.loss(policy, 1.0)) == pytest.approx(1 - problem.divergences(policy)["mass_in_support"])
    for near, limit in ((1e-7, 0.0), (1 - 1e-7, 1.0)):
        assert torch.allclose(problem.gradient(policy, near), problem.gradient(policy, limit), atol=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_gradient_is_minus_the_expectation_of_reward_times_score(alpha: float) -> None:
    given_case = case("on_policy")
    problem, policy, space = given_case.problem, given_case.policy, given_case.space
    pi = space.log_probs(policy).sum(1).exp()
    reward = torch.where(problem.right, (problem.target / pi) ** (1 - alpha), 0.0)
    by_formula = -(pi * reward) @ space.scores(policy).sum(1)
    assert torch.allclose(by_formula, problem.gradient(policy, alpha), atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), alpha=st.floats(0, 1), distance=st.floats(0, 10))
def test_the_expected_reward_is_between_zero_and_one_and_one_only_at_the_target(
    seed: int, alpha: float, distance: float
) -> None:
    random = torch.Generator().manual_seed(seed)
    space = OutputSpace(3, 2)
    base = torch.randn(space.prefixes, 3, generator=random, dtype=torch.float64)
    right = torch.rand(len(space), generator=random) < 0.5
    right[0] = True
    problem = ExactProblem(space, base, right)
    policy = base + distance * torch.randn(space.prefixes, 3, generator=random, dtype=torch.float64)
    assert 0 <= float(problem.expected_reward(policy, alpha)) <= 1 + 1e-12
    everything = ExactProblem(space, base, torch.ones(len(space), dtype=torch.bool))
    assert float(everything.expected_reward(base, alpha)) == pytest.approx(1, abs=1e-12)


def test_the_second_moment_of_the_reward_is_at_most_one_from_alpha_one_half_on() -> None:
    given_case = case("on_policy")
    problem = given_case.problem
    pi = given_case.space.log_probs(given_case.policy).sum(1).exp()
    for alpha in (0.5, 0.75, 1.0):
        reward = torch.where(problem.right, (problem.target / pi) ** (1 - alpha), 0.0)
        assert float((pi * reward**2).sum()) <= 1


def test_a_problem_without_a_right_output_is_refused() -> None:
    space = OutputSpace(2, 1)
    with pytest.raises(ValueError, match="right output"):
        ExactProblem(space, torch.zeros(1, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.bool))


def test_divergences_vanish_at_the_target() -> None:
    space = OutputSpace(3, 1)
    base = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    problem = ExactProblem(space, base, torch.ones(3, dtype=torch.bool))
    found = problem.divergences(base)
    assert found["mass_in_support"] == pytest.approx(1)
    assert all(math.isclose(found[name], 0, abs_tol=1e-12) for name in found if name != "mass_in_support")
