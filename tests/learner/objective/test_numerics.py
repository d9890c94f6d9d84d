"""Whatever the batch, coefficients are finite, bounded where a bound is promised, and a group's own business."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from learner.objective.groups import Groups
from learner.objective.sequences import Sequences
from learner.objective.settings import OBJECTIVES, Correction
from learner.train.partition import PartitionFunction, PartitionSettings, importance_weights
from tests.learner.objective.objective_cases import objective, own, random_sequences

NAMES = st.sampled_from(sorted(OBJECTIVES))
CORRECTIONS = st.sampled_from(get_args(Correction))
SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(
    name=NAMES,
    correction=CORRECTIONS,
    sizes=SIZES,
    scale=st.sampled_from([0.0, 1.0, 100.0, 1e4]),
    passed=st.sampled_from([None, True, False]),
    alpha=st.sampled_from([0.0, 1e-6, 0.5, 1 - 1e-6, 1.0]),
    limits=st.sampled_from([(None, None), (5.0, 10.0), (1.0, 1.0)]),
    control_variate=st.sampled_from(["loo", "min_variance", "none"]),
    seed=st.integers(0, 10**6),
)
@example(  # a product of six untruncated ratios, beyond float32
    name="pass_at_k", correction="sequence", sizes=[1, 1, 3, 6], scale=100.0, passed=False, alpha=0.0,
    limits=(None, None), control_variate="loo", seed=0,
)  # fmt: skip
@pytest.mark.slow
def test_coefficients_and_diagnostics_are_finite(
    name: str,
    correction: str,
    sizes: list[int],
    scale: float,
    passed: bool | None,
    alpha: float,
    limits: tuple[float | None, float | None],
    control_variate: str,
    seed: int,
) -> None:
    sequences = random_sequences(sizes, scale=scale, passed=passed, seed=seed)
    truncation, clip = limits
    chosen = own(
        name, correction=correction, alpha=alpha, truncation=truncation, clip=clip, control_variate=control_variate
    )
    found = objective(**chosen)(sequences)
    assert found.values.shape in {(len(sequences), 1), tuple(sequences.policy.shape)}
    assert found.values.dtype == torch.float32 and not found.values.requires_grad
    assert torch.isfinite(found.values).all()
    assert all(value.dim() == 0 and torch.isfinite(value) for value in found.diagnostics.values())
    if name == "alpha_dpg" and clip == 10.0:
        assert float(found.values.abs().max()) <= 10 * 5 + 10


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_without_sequences_gives_no_coefficients(name: str) -> None:
    nothing = random_sequences([2]).select(torch.zeros(0, dtype=torch.int64))
    assert objective(name=name)(nothing).values.shape[0] == 0


@settings(max_examples=60, deadline=None)
@given(
    name=NAMES,
    correction=CORRECTIONS,
    sizes=SIZES,
    seed=st.integers(0, 10**6),
)
def test_a_groups_coefficients_depend_on_that_group_only(
    name: str, correction: str, sizes: list[int], seed: int
) -> None:
    """So shards of whole groups, in any order, give what one batch gives: of the rest they are told what counts."""
    sequences = random_sequences(sizes, seed=seed)

    def configured(given: Sequences) -> torch.Tensor:
        built = objective(name=name, correction=correction)
        return built.values(given, replace(built.context, mixed_share=0.5))

    whole = configured(sequences)
    shuffled = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(configured(sequences.select(shuffled)), whole[shuffled], atol=1e-5)
    first = sequences.group == 0
    assert torch.allclose(configured(sequences.select(first)), whole[first], atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, control_variate=st.sampled_from(["loo", "min_variance"]), seed=st.integers(0, 10**6))
@pytest.mark.slow
def test_the_control_variate_never_sees_its_own_sample(sizes: list[int], control_variate: str, seed: int) -> None:
    """Turning sample 0 from wrong to right adds its own W to its coefficient and changes nothing else about it."""
    sequences = random_sequences(sizes, seed=seed)
    passed = sequences.passed.clone()

    def own(value: bool, kind: str) -> float:
        passed[0] = value
        found = objective(control_variate=kind)(replace(sequences, passed=passed.clone()))
        return float(found.values[0, 0])

    with_control = own(True, control_variate) - own(False, control_variate)
    assert with_control == pytest.approx(own(True, "none"), rel=1e-3, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, control_variate=st.sampled_from(["loo", "min_variance"]), seed=st.integers(0, 10**6))
def test_the_control_variate_does_not_see_its_own_sample_through_the_others_z(
    sizes: list[int], control_variate: str, seed: int
) -> None:
    """Ẑ of every other sample of a new prompt contains sample 0: its verdict moves their Ẑ, and still not its own c."""
    sequences = random_sequences(sizes, seed=seed)
    log_base = torch.where(sequences.mask, sequences.base, 0.0).sum(1).numpy()
    log_sampler = torch.where(sequences.mask, sequences.sampler, 0.0).sum(1).numpy()

    def own(value: bool, kind: str) -> float:
        passed = sequences.passed.clone()
        passed[0] = value
        weights = importance_weights(log_base, log_sampler, passed.numpy(), 10.0)
        log_z = PartitionFunction(PartitionSettings(prior_mean=0.2)).log_z(sequences.group.numpy(), weights)
        given = replace(sequences, passed=passed, log_z=torch.from_numpy(log_z))
        return float(objective(control_variate=kind).values(given)[0, 0])

    with_control = own(True, control_variate) - own(False, control_variate)
    assert with_control == pytest.approx(own(True, "none"), rel=1e-3, abs=1e-4)


def test_wrong_answers_push_away_in_proportion_to_how_current_they_are() -> None:
    """A wrong answer's coefficient is −c·ρ: nothing when the current policy would not have given it any more."""
    sequences = random_sequences([4], scale=0.0)
    passed = torch.tensor([False, True, True, False])
    unlikely = torch.where(torch.arange(4)[:, None] == 0, sequences.sampler + 3.0, sequences.sampler)
    found = objective()(replace(sequences, passed=passed, sampler=unlikely)).values[:, 0]
    assert float(found[3]) < float(found[0]) < 0


def test_padding_is_never_read() -> None:
    sequences = random_sequences([4, 4])
    poisoned = {
        field: torch.where(sequences.mask, getattr(sequences, field), torch.nan)
        for field in ("policy", "sampler", "base")
    }
    for correction in get_args(Correction):
        clean = objective(correction=correction)(sequences)
        dirty = objective(correction=correction)(replace(sequences, **poisoned))
        assert torch.equal(clean.values * sequences.mask, dirty.values * sequences.mask)
        assert clean.diagnostics.keys() == dirty.diagnostics.keys()
        assert all(torch.equal(clean.diagnostics[key], dirty.diagnostics[key]) for key in clean.diagnostics)


def test_sequences_that_cannot_be_right_are_refused() -> None:
    sequences = random_sequences([2])
    broken = sequences.policy.clone()
    broken[1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"policy log-probability of sequence 1, token 0 is nan"):
        replace(sequences, policy=broken)
    with pytest.raises(ValueError, match="passed has shape"):
        replace(sequences, passed=sequences.passed[:1])
    with pytest.raises(ValueError, match="dtype"):
        replace(sequences, mask=sequences.mask.float())
    with pytest.raises(ValueError, match="log_z must be finite"):
        replace(sequences, log_z=torch.full((2,), -torch.inf))


def test_leaving_one_out_is_exact_beside_a_huge_weight() -> None:
    found = Groups(torch.zeros(3, dtype=torch.int64)).others(torch.tensor([1e17, 1.0, 2.0]))
    assert found[0] == 3.0 and found.tolist() == pytest.approx([3.0, 1e17, 1e17])


def test_all_objectives_take_gradient_free_input_of_any_device_dtype() -> None:
    sequences = random_sequences([3])
    half = replace(sequences, policy=sequences.policy.bfloat16(), base=sequences.base.bfloat16())
    assert isinstance(half, Sequences)
    assert objective()(half).values.dtype == torch.float32
