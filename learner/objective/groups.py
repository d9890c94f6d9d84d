"""Sums and means within groups, with and without the sample they are for."""

from __future__ import annotations

import torch
from torch import Tensor


class Groups:
    """The padded (G, n_max) layout of a batch of ragged groups; groups may be of any size ≥ 1."""

    def __init__(self, group: Tensor) -> None:
        """`group`: (N,) int64, equal within a group, in any order."""
        inverse: Tensor
        counts: Tensor
        _, inverse, counts = torch.unique(group, return_inverse=True, return_counts=True)
        self._group = inverse
        order = torch.argsort(self._group, stable=True)
        starts = torch.cumsum(counts, 0) - counts
        rank = torch.arange(len(group), device=group.device) - starts[self._group[order]]
        self._rank = torch.empty_like(rank)
        self._rank[order] = rank
        self.counts = counts
        self.width = int(counts.max()) if len(counts) else 0
        """n_max, the largest group."""
        self.size: Tensor = counts[self._group]
        """How many samples the sample's own group has; (N,) int64."""

    def __len__(self) -> int:
        return len(self.counts)

    def pad(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """(N,) values as (G, n_max), `fill` where a group is shorter."""
        padded = torch.full((len(self), self.width), fill, dtype=values.dtype, device=values.device)
        padded[self._group, self._rank] = values
        return padded

    def unpad(self, padded: Tensor) -> Tensor:
        """(G, n_max) values as (N,), in the batch's order."""
        values: Tensor = padded[self._group, self._rank]
        return values

    def total(self, values: Tensor) -> Tensor:
        """Sum over the sample's whole group, itself included; (N,)."""
        sums: Tensor = self.pad(values).sum(1)
        return sums[self._group]

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the sample's whole group, itself included; (N,)."""
        return self.total(values) / self.size

    def others(self, values: Tensor) -> Tensor:
        """Sum over the other samples of the group, 0 for a group of one; (N,).

        Prefix plus suffix sums, not total minus own: one huge weight would cancel the small ones away.
        """
        padded = self.pad(values)
        before = _exclusive(padded)
        after = _exclusive(padded.flip(1)).flip(1)
        return self.unpad(before + after)

    def mean_of_others(self, values: Tensor) -> Tensor:
        """Mean over the other samples of the group, 0 for a group of one; (N,)."""
        return self.others(values) / (self.size - 1).clamp(min=1)


def _exclusive(padded: Tensor) -> Tensor:
    """Sum of the entries before each position along dimension 1."""
    if padded.shape[1] == 0:
        return padded
    return torch.cat([torch.zeros_like(padded[:, :1]), torch.cumsum(padded[:, :-1], 1)], 1)
