"""Packing of a step's groups into micro-batches: arithmetic on lengths, then tensors. No model, no broker, no I/O.

Terms: a *row* is one prompt followed by one or more of its completions; completions that share a row share
the prompt's computation: each attends to the prompt and to itself, and its positions go on from the prompt's end, so
every log-probability is the one a row of its own would give. A *micro-batch* is a set of rows padded to the longest.

Invariants: every completion is in exactly one row; while a group fits into the token budget it is never split over
micro-batches (the coefficients of a completion depend on its whole group); all ranks get the same number of
micro-batches (a sharded forward is a collective: a rank with one less would hang the others).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """Lengths in tokens of one group: its prompt and each of its completions (none when all were lost)."""

    prompt: int
    completions: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of the group when the prompt is shared, by which groups are balanced between ranks."""
        return self.prompt + sum(self.completions)


@dataclass(frozen=True)
class Row:
    """Completions `members` (places in the group) of group `group` (place in the rank's list) laid out together."""

    group: int
    members: tuple[int, ...]
    length: int


@dataclass(frozen=True)
class Plan:
    """Micro-batches of one rank; `whole` is True when no group is split over two of them."""

    micro_batches: tuple[tuple[Row, ...], ...]
    whole: bool

    @property
    def padded_tokens(self) -> int:
        return sum(len(rows) * max(row.length for row in rows) for rows in self.micro_batches if rows)


def balance(shapes: Sequence[Shape], ranks: int) -> list[list[int]]:
    """Groups of each rank: longest group first to the rank with the fewest tokens (LPT: at most 4/3 of the optimum).

    Deterministic, so that every rank computes the same answer from the same shapes. Returns `ranks` sorted lists of
    positions in `shapes`.
    """
    loads = [0] * ranks
    parts: list[list[int]] = [[] for _ in range(ranks)]
    for group in sorted(range(len(shapes)), key=lambda index: (-shapes[index].tokens, index)):
        rank = min(range(ranks), key=lambda index: (loads[index], index))
        parts[rank].append(group)
        loads[rank] += shapes[group].tokens
    return [sorted(part) for part in parts]


def rows_of(shape: Shape, group: int, row_tokens: int) -> list[Row]:
    """The group's rows: completions, longest first, join a row while it stays within `row_tokens`; else one each."""
    order = sorted(range(len(shape.completions)), key=lambda index: (-shape.completions[index], index))
    rows: list[Row] = []
    members: list[int] = []
    length = shape.prompt
    for member in order:
        if members and length + shape.completions[member] > row_tokens:
            rows.append(Row(group, tuple(members), length))
            members, length = [], shape.prompt
        members.append(member)
        length += shape.completions[member]
    if members:
        rows.append(Row(group, tuple(members), length))
    return rows


def plan(shapes: Sequence[Shape], budget: int, row_tokens: int) -> Plan:
    """Micro-batches of one rank: rows of similar length together, padded tokens ≤ `budget` each.

    Groups stay whole when every group fits the budget on its own; otherwise rows are packed regardless of their group
    and `Plan.whole` is False: the caller must then know all log-probabilities before it computes coefficients. Only a
    row that is a single sequence may exceed the budget, and then it is alone.
    """
    row_limit = min(row_tokens, budget)
    grouped = [rows_of(shape, index, row_limit) for index, shape in enumerate(shapes) if shape.completions]
    whole = all(len(rows) * max(row.length for row in rows) <= budget for rows in grouped)
    units = grouped if whole else [[row] for rows in grouped for row in rows]
    units.sort(key=lambda rows: max(row.length for row in rows), reverse=True)
    batches: list[tuple[Row, ...]] = []
    current: list[Row] = []
    longest = 0
    for rows in units:
        widest = max(longest, max(row.length for row in rows))
        if current and (len(current) + len(rows)) * widest > budget:
            batches.append(tuple(current))
            current, widest = [], max(row.length for row in rows)
        current.extend(rows)
        longest = widest
    if current:
        batches.append(tuple(current))
    return Plan(tuple(batches), whole)


def same_count(batches: tuple[tuple[Row, ...], ...], count: int) -> tuple[tuple[Row, ...], ...]:
    """The same rows in exactly `count` ≥ len(batches) micro-batches; the ones added at the end are empty."""
    if len(batches) > count:
        raise ValueError(f"{len(batches)} micro-batches do not go into {count}")
    return batches + ((),) * (count - len(batches))


@dataclass(frozen=True)
class Layout:
    """One micro-batch as tensors. R rows of L tokens, N completions of up to T tokens, M completion tokens in all.

    `tokens` (R, L) int64. `positions` (R, L) int64 and `attend` (R, 1, L, L) bool are None when every row is one plain
    sequence (causal attention with padding on the right needs neither). `at` (M,) int64: place in the flattened (R·L)
    rows whose hidden state predicts each completion token; `targets` (M,) int64: that token. `mask` (N, T) bool: where
    those M tokens lie in a completion-by-token table, row-major. `samples` (N,): each completion's place among the
    rank's.
    """

    tokens: Tensor
    positions: Tensor | None
    attend: Tensor | None
    at: Tensor
    targets: Tensor
    mask: Tensor
    samples: Tensor

    def table(self, flat: Tensor) -> Tensor:
        """(M,) per-token values as an (N, T) table with zeros elsewhere; differentiable."""
        return torch.zeros(self.mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(self.mask, flat)

    def to(self, device: torch.device) -> Layout:
        """The same layout on `device`."""
        found: dict[str, Any] = {
            name: None if tensor is None else tensor.to(device, non_blocking=True)
            for name, tensor in vars(self).items()
        }
        return Layout(**found)


def lay_out(
    rows: Sequence[Row],
    prompts: Sequence[np.ndarray],
    completions: Sequence[Sequence[np.ndarray]],
    first: Sequence[int],
) -> Layout:
    """Tensors of one micro-batch.

    `prompts[g]` and `completions[g][m]` are int32 token ids; `first[g]` is the place of group g's first completion
    among all of the rank's completions. No rows give a layout of one padding token and no completion, so that a
    rank without work can take part in the collectives.
    """
    width = max((row.length for row in rows), default=1)
    tokens = np.zeros((max(len(rows), 1), width), np.int64)
    positions = np.zeros_like(tokens)
    branch = np.full(tokens.shape, -2, np.int32)  # -2 padding, -1 prompt, then the completion's place in its row
    at: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    lengths: list[int] = []
    samples: list[int] = []
    for place, row in enumerate(rows):
        prompt = prompts[row.group]
        start = len(prompt)
        tokens[place, :start], positions[place, :start], branch[place, :start] = prompt, np.arange(start), -1
        for number, member in enumerate(row.members):
            completion = completions[row.group][member]
            end = start + len(completion)
            tokens[place, start:end] = completion
            positions[place, start:end] = np.arange(len(prompt), len(prompt) + len(completion))
            branch[place, start:end] = number
            sources = np.arange(start - 1, end - 1)
            sources[0] = len(prompt) - 1  # the first token is predicted by the prompt's end, wherever its branch lies
            at.append(place * width + sources)
            targets.append(completion)
            lengths.append(len(completion))
            samples.append(first[row.group] + member)
            start = end
    shared = any(len(row.members) > 1 for row in rows)
    mask = np.arange(max(lengths, default=0))[None, :] < np.asarray(lengths, np.int64)[:, None]
    return Layout(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(positions) if shared else None,
        attend=torch.from_numpy(_attention(branch))[:, None] if shared else None,
        at=torch.from_numpy(np.concatenate(at) if at else np.zeros(0, np.int64)),
        targets=torch.from_numpy(np.concatenate(targets).astype(np.int64) if targets else np.zeros(0, np.int64)),
        mask=torch.from_numpy(mask),
        samples=torch.tensor(samples, dtype=torch.int64),
    )


def _attention(branch: np.ndarray) -> np.ndarray:
    """(R, L, L) bool: query i sees key j ≤ i when j is prompt or in i's branch; padding sees padding (finite)."""
    same = branch[:, :, None] == branch[:, None, :]
    prompt = (branch == -1)[:, None, :]
    causal = np.tri(branch.shape[1], dtype=bool)
    visible: np.ndarray = (same | prompt) & causal
    return visible
