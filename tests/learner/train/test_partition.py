"""Ẑ is unbiased for every behaviour policy, never contains the sample it weighs, and survives storage."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.train.partition import PartitionFunction, PartitionSettings, Statistics, importance_weights
from tests.learner.objective.objective_cases import case

NO_PRIOR = PartitionSettings(prior_strength=0, largest_weight=None)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize("member", [0, 1, 2])
def test_every_behaviour_policy_estimates_the_same_z(member: int) -> None:
    stale = case("stale")
    log_mu = stale.samplers[member].sum(1)
    draws = torch.multinomial(log_mu.exp(), 40_000, replacement=True, generator=torch.Generator().manual_seed(3))
    weights = importance_weights(
        stale.problem.log_base[draws].numpy(), log_mu[draws].numpy(), stale.problem.right[draws].numpy(), None
    )
    partition = PartitionFunction(NO_PRIOR)
    partition.observe(np.zeros(len(weights), dtype=np.int64), weights)
    assert abs(partition.z(0) - stale.problem.z) < 4 * weights.std() / math.sqrt(len(weights))


def test_samples_of_the_target_itself_know_z_without_error() -> None:
    stale = case("stale")
    log_p = np.log(stale.problem.target[stale.problem.right].numpy())
    weights = importance_weights(
        stale.problem.log_base[stale.problem.right].numpy(), log_p, np.ones(len(log_p), dtype=bool), None
    )
    assert np.allclose(weights, stale.problem.z)


@settings(max_examples=60, deadline=None)
@given(
    visits=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 10)), min_size=1, max_size=20),
    batch=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 10)), min_size=1, max_size=12),
    other=st.floats(0, 10),
)
def test_an_estimate_never_contains_its_own_sample(
    visits: list[tuple[int, float]], batch: list[tuple[int, float]], other: float
) -> None:
    partition = PartitionFunction(PartitionSettings())
    partition.observe(ints(*[p for p, _ in visits]), np.array([w for _, w in visits]))
    prompts, weights = ints(*[p for p, _ in batch]), np.array([w for _, w in batch])
    before = partition.log_z(prompts, weights)[0]
    weights[0] = other
    assert partition.log_z(prompts, weights)[0] == pytest.approx(before, abs=1e-5)


def test_group_mode_contains_it_and_starves_small_groups() -> None:
    """With Z from the group itself, p/π_b = 1/Ẑ of a lone right answer can never exceed the group's size."""
    prompts, weights = ints(0, 0, 0, 0), np.array([1.0, 0, 0, 0])
    own = PartitionFunction(PartitionSettings(mode="group")).log_z(prompts, weights)
    pooled = PartitionFunction(PartitionSettings()).log_z(prompts, weights)
    assert np.exp(own) == pytest.approx([0.25] * 4)
    assert np.exp(pooled[0]) < 0.25


def test_pooling_over_visits_sharpens_the_estimate() -> None:
    random = np.random.default_rng(0)
    partition = PartitionFunction(PartitionSettings())
    widths = []
    for visits in (1, 10, 100):
        while partition.statistics(7).count < visits * 8:
            partition.observe(np.full(8, 7, dtype=np.int64), (random.random(8) < 0.2).astype(float))
        low, high = partition.interval(7)
        assert low <= 0.2 <= high
        widths.append(high - low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]
    assert partition.summary()["z_narrow_share"] == 1


@pytest.mark.parametrize(("member", "count"), [("base", 16), ("base", 64), (0, 256), (1, 256), (2, 256)])
def test_the_interval_covers_z_as_often_as_it_says(member: int | str, count: int) -> None:
    stale = case("stale", seed=2)
    log_mu = stale.problem.log_base if member == "base" else stale.samplers[int(member)].sum(1)
    random = torch.Generator().manual_seed(5)
    covered = 0
    for _ in range(300):
        draws = torch.multinomial(log_mu.exp(), count, replacement=True, generator=random)
        weights = importance_weights(
            stale.problem.log_base[draws].numpy(), log_mu[draws].numpy(), stale.problem.right[draws].numpy(), None
        )
        partition = PartitionFunction(NO_PRIOR)
        partition.observe(np.zeros(count, dtype=np.int64), weights)
        low, high = partition.interval(0)
        covered += low <= stale.problem.z <= high
    # 95 % nominal, 1.3 % binomial error of 300 trials; skewed importance weights cost a little more.
    assert 0.90 <= covered / 300 <= 0.995


def test_a_new_prompt_starts_from_what_the_others_show() -> None:
    partition = PartitionFunction(PartitionSettings())
    for prompt in range(20):
        partition.observe_base(prompt, samples=50, passes=5)
    fresh = np.exp(partition.log_z(ints(99, 99), np.zeros(2)))
    assert fresh == pytest.approx([0.1 * 20 / 21] * 2, rel=1e-3)


def test_the_prior_is_weak_where_prompts_differ_and_strong_where_they_agree() -> None:
    def pull(rates: list[float]) -> float:
        partition = PartitionFunction(PartitionSettings())
        for prompt, rate in enumerate(rates):
            partition.observe_base(prompt, samples=100, passes=round(100 * rate))
        partition.observe_base(99, samples=8, passes=8)
        return partition.z(99)

    assert pull([0.0, 1.0] * 10) > 0.9 > 0.5 > pull([0.2] * 20)


def test_without_samples_or_prior_z_is_one_half_and_never_below_the_floor() -> None:
    assert np.exp(PartitionFunction(NO_PRIOR).log_z(ints(0), np.array([1.0]))) == pytest.approx([0.5])
    hopeless = PartitionFunction(PartitionSettings(floor=0.01))
    hopeless.observe_base(0, samples=10_000, passes=0)
    assert hopeless.z(0) == 0.01
    assert hopeless.interval(0)[0] < 1e-4


def test_one_sample_of_a_drifted_policy_cannot_own_a_prompt() -> None:
    weights = importance_weights(np.array([0.0, -1e4]), np.array([-1e4, 0.0]), np.array([True, True]), 10.0)
    assert weights.tolist() == pytest.approx([10.0, 0.0])
    unlimited = importance_weights(np.array([0.0]), np.array([-1e4]), np.array([True]), None)
    assert np.isfinite(unlimited**2).all()


@given(count=st.integers(0, 2**40), total=st.floats(0, 1e12), squares=st.floats(0, 1e12))
def test_statistics_survive_storage(count: int, total: float, squares: float) -> None:
    statistics = Statistics(count, total, squares)
    assert Statistics.unpack(statistics.pack()) == statistics
    assert len(statistics.pack()) == 25


def test_a_reloaded_partition_function_gives_the_same_estimates() -> None:
    first, second = PartitionFunction(PartitionSettings()), PartitionFunction(PartitionSettings())
    random = np.random.default_rng(1)
    prompts = random.integers(0, 30, 400)
    first.observe(prompts, random.random(400))
    second.load(first.pack())
    assert np.array_equal(first.log_z(prompts, random.random(400) * 0), second.log_z(prompts, np.zeros(400)))
    assert second.summary() == pytest.approx(first.summary())
    assert first.pack([3, 3, 999]).keys() == {3}


@pytest.mark.parametrize("data", [b"", b"\x02" * 25, b"\x01" * 24, Statistics(1, math.inf, 0).pack()])
def test_unreadable_statistics_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(ValueError, match="prompt 4"):
        PartitionFunction(PartitionSettings()).load({4: data})


def test_statistics_add_in_any_order() -> None:
    a, b = Statistics.of([0.5, 0.0]), Statistics.of([1.0])
    assert a + b == b + a == Statistics.of([1.0, 0.5, 0.0])


def test_fixed_mode_uses_the_given_rates_and_wants_all_of_them() -> None:
    fixed: Mapping[int, float] = {0: 0.25, 1: 0.0}
    partition = PartitionFunction(PartitionSettings(mode="fixed"), fixed)
    assert np.exp(partition.log_z(ints(0, 1), np.ones(2))) == pytest.approx([0.25, 1e-3])
    with pytest.raises(ValueError, match="1 prompts have no base pass rate"):
        partition.log_z(ints(2), np.ones(1))
    with pytest.raises(ValueError, match="mode = fixed"):
        PartitionFunction(PartitionSettings(mode="fixed"))
    with pytest.raises(ValueError, match="within 0"):
        PartitionFunction(PartitionSettings(), {0: 1.5})


def test_bad_weights_are_refused() -> None:
    partition = PartitionFunction(PartitionSettings())
    for weights in (np.array([np.nan]), np.array([-1.0]), np.array([1.0, 1.0])):
        with pytest.raises(ValueError):
            partition.observe(ints(0), weights)
