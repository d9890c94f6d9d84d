"""A quantity declared in Sequences is checked and carried everywhere, without being listed anywhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from learner.objective.sequences import Sequences, quantities
from tests.learner.objective.objective_cases import random_sequences


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.dtype == expected.dtype and torch.equal(found, expected)


@pytest.mark.parametrize("name", quantities())
def test_every_quantity_survives_selecting_moving_and_joining(name: str) -> None:
    short, long = random_sequences([2, 3], tokens=3, seed=1), random_sequences([4], tokens=5, seed=2)
    joined = Sequences.joined([short, long])
    found = getattr(joined, name)
    first, second = found[: len(short)], found[len(short) :]
    if first.dim() == 2:
        assert not first[:, 3:].any()
        first = first[:, :3]
    assert same(first, getattr(short, name)) and same(second, getattr(long, name))
    index = torch.tensor([3, 0])
    assert same(getattr(short.select(index), name), getattr(short, name)[index])
    assert same(getattr(short.to("cpu"), name), getattr(short, name))


@pytest.mark.parametrize("name", quantities())
def test_every_quantity_is_held_to_its_shape_and_kind(name: str) -> None:
    sequences = random_sequences([2])
    value = getattr(sequences, name)
    with pytest.raises(ValueError, match=f"has shape .*expected|{name} has shape"):
        replace(sequences, **{name: value[:1]})
    other = value.float() if value.dtype == torch.bool or not value.is_floating_point() else value.long()
    with pytest.raises(ValueError, match=f"{name} has dtype {other.dtype}, expected"):
        replace(sequences, **{name: other})
