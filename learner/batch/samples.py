"""The groups that one rank trains on, as arrays. Wire types in, numpy arrays and tensors out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from broker.queue.state import Group
from learner.batch.packing import Layout, Shape, balance
from learner.ranks import Ranks

Ids = NDArray[np.int32]
Floats = NDArray[np.float32]


def shape_of(group: Group, prompt: Ids) -> Shape:
    """The lengths by which groups are balanced and packed."""
    return Shape(len(prompt), tuple(len(member.completion.ids) for member in group.members))


@dataclass
class Samples:
    """N completions in G whole groups; per-completion lists and arrays are in the order of the groups.

    A quantity of `learner.objective.sequences.Sequences` that comes with the completions, and is not computed by the
    learner's step, is a field of the same name here: a list of per-token arrays, or an (N,) array.
    """

    shapes: list[Shape]
    prompts: list[Ids]
    """Prompt tokens of each group."""
    completions: list[list[Ids]]
    first: list[int]
    """Position of each group's first completion among the N."""
    keys: list[tuple[str, int]]
    """(group_id, idx) of each completion."""
    sampler: list[Floats]
    """log μ per token as the sampler recorded it."""
    base: list[Floats | None]
    """log π_b per token, None until scored."""
    passed: NDArray[np.bool_]
    prompt: NDArray[np.int64]
    """Index of the prompt in the training file, (N,)."""
    group: NDArray[np.int64]
    """The group's place in the whole step's list, equal on every rank, (N,)."""
    oldest: NDArray[np.int64]
    """Oldest version that sampled a token of the completion, (N,)."""
    staleness: NDArray[np.int64]
    """Staleness of that version, `broker.queue.admission.staleness`, (N,)."""
    actors: list[str]
    """Id of the actor that sampled each completion."""

    @classmethod
    def of(
        cls,
        groups: Sequence[Group],
        prompts: Sequence[Ids],
        places: Sequence[int],
        staleness: Callable[[int], int] = lambda version: 0,
    ) -> Samples:
        """Samples of `groups`; `prompts[g]`: prompt tokens of groups[g]; `places[g]`: its place in the step's list;
        `staleness(version)`: that of a token sampled with `version`."""
        members = [
            (group, place, member) for group, place in zip(groups, places, strict=True) for member in group.members
        ]
        shapes = [shape_of(group, prompt) for group, prompt in zip(groups, prompts, strict=True)]
        sizes = [len(shape.completions) for shape in shapes]
        oldest = [member.completion.oldest for _, _, member in members]
        return cls(
            shapes=shapes,
            prompts=list(prompts),
            completions=[[member.completion.ids for member in group.members] for group in groups],
            first=[sum(sizes[:index]) for index in range(len(sizes))],
            keys=[(group.group_id, member.completion.idx) for group, _, member in members],
            sampler=[member.completion.sampler_logprobs for _, _, member in members],
            base=[member.base for _, _, member in members],
            passed=np.array([member.verdict.outcome == "pass" for _, _, member in members], bool),
            prompt=np.array([group.prompt for group, _, _ in members], np.int64),
            group=np.array([place for _, place, _ in members], np.int64),
            oldest=np.array(oldest, np.int64),
            staleness=np.array([staleness(version) for version in oldest], np.int64),
            actors=[member.completion.actor for _, _, member in members],
        )

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def mixed_groups(self) -> int:
        """Groups with both right and wrong answers."""
        return len(set(self.group[self.passed].tolist()) & set(self.group[~self.passed].tolist()))

    @property
    def tokens(self) -> int:
        """Completion tokens."""
        return sum(len(values) for values in self.sampler)


def fetch(
    ranks: Ranks,
    group_ids: Sequence[str],
    prompts: Sequence[Ids],
    read: Callable[[list[str]], list[Group]],
    staleness: Callable[[int], int],
) -> Samples:
    """This rank's groups of a step, balanced between ranks by tokens. Collective.

    A group's lengths are known only once it is read: each rank reads an equal slice, shares the lengths, and reads the
    groups that the balanced division gives it besides. `prompts`: tokens of every training prompt. `staleness`: as in
    `Samples.of`.
    """
    slice_ = list(range(len(group_ids)))[ranks.rank :: ranks.world]
    found = dict(zip(slice_, read([group_ids[place] for place in slice_]), strict=True))
    shapes = {place: shape_of(group, prompts[group.prompt]) for place, group in found.items()}
    everywhere = {place: shape for part in ranks.gather(shapes) for place, shape in part.items()}
    mine = balance([everywhere[place] for place in range(len(group_ids))], ranks.world)[ranks.rank]
    lacking = [place for place in mine if place not in found]
    found |= dict(zip(lacking, read([group_ids[place] for place in lacking]), strict=True))
    groups = [found[place] for place in mine]
    return Samples.of(groups, [prompts[group.prompt] for group in groups], mine, staleness)


def tensor(layout: Layout, values: Sequence[Floats | None] | NDArray[np.generic]) -> Tensor:
    """A quantity of the rank's N completions for those of the layout, on its device: a list of per-token arrays as an
    (N, T) table, an (N,) array as an (N,) column."""
    return column(layout, values) if isinstance(values, np.ndarray) else table(layout, values)


def table(layout: Layout, values: Sequence[Floats | None]) -> Tensor:
    """Per-completion rows `values` (one of each of the rank's N) as the layout's (N, T) float32 table on its device."""
    rows = [values[sample] for sample in layout.samples.tolist()]
    flat = np.concatenate(rows) if rows else np.zeros(0, np.float32)
    return layout.table(torch.from_numpy(flat.astype(np.float32, copy=False)).to(layout.mask.device))


def column(layout: Layout, values: NDArray[np.generic]) -> Tensor:
    """Entries of a per-completion array that belong to the layout's completions, on its device."""
    return torch.from_numpy(values[layout.samples.cpu().numpy()]).to(layout.mask.device)
