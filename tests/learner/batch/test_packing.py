"""Properties of packing: nothing lost or doubled, groups whole, budgets kept, ranks balanced and in step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.batch.packing import Row, Shape, balance, lay_out, plan, same_count

lengths = st.lists(st.integers(1, 40), min_size=0, max_size=9)
shapes = st.lists(st.builds(Shape, st.integers(1, 30), lengths.map(tuple)), max_size=20)


@settings(deadline=None)
@given(shapes, st.integers(1, 5))
def test_every_group_goes_to_one_rank(groups: list[Shape], ranks: int) -> None:
    parts = balance(groups, ranks)
    assert sorted(index for part in parts for index in part) == list(range(len(groups)))
    assert parts == balance(groups, ranks)


@settings(deadline=None)
@given(shapes.filter(len), st.integers(1, 5))
def test_no_rank_has_more_than_one_group_above_the_least_loaded(groups: list[Shape], ranks: int) -> None:
    loads = [sum(groups[index].tokens for index in part) for part in balance(groups, ranks)]
    assert max(loads) - min(loads) <= max(shape.tokens for shape in groups)


@settings(deadline=None)
@given(shapes, st.integers(70, 2000), st.integers(0, 300))
def test_every_completion_is_in_one_row_and_every_row_in_the_budget(groups: list[Shape], budget: int, row: int) -> None:
    packed = plan(groups, budget, row)
    rows = [row for batch in packed.micro_batches for row in batch]
    found = sorted((row.group, member) for row in rows for member in row.members)
    assert found == [(g, m) for g, shape in enumerate(groups) for m in range(len(shape.completions))]
    for batch in packed.micro_batches:
        assert len(batch) * max(entry.length for entry in batch) <= budget
    for entry in rows:
        shape = groups[entry.group]
        assert entry.length == shape.prompt + sum(shape.completions[member] for member in entry.members)
        assert len(entry.members) == 1 or entry.length <= row


@settings(deadline=None)
@given(shapes, st.integers(1, 2000), st.integers(0, 300))
def test_groups_are_whole_unless_one_exceeds_the_budget(groups: list[Shape], budget: int, row: int) -> None:
    packed = plan(groups, budget, row)
    homes: dict[int, set[int]] = {}
    for number, batch in enumerate(packed.micro_batches):
        for entry in batch:
            homes.setdefault(entry.group, set()).add(number)
    if packed.whole:
        assert all(len(places) == 1 for places in homes.values())
    for batch in packed.micro_batches:
        single = len(batch) == 1 and len(batch[0].members) == 1
        assert single or len(batch) * max(entry.length for entry in batch) <= budget


def test_sharing_the_prompt_computes_fewer_tokens() -> None:
    groups = [Shape(12, (10,) * 8)] * 16
    assert plan(groups, 2048, 256).padded_tokens < 0.6 * plan(groups, 2048, 0).padded_tokens


def test_ranks_get_the_same_number_of_micro_batches() -> None:
    batches = ((Row(0, (0,), 3),),)
    assert same_count(batches, 3) == (*batches, (), ())
    with pytest.raises(ValueError, match="do not go into"):
        same_count(batches, 0)


@settings(deadline=None)
@given(shapes.filter(lambda groups: any(shape.completions for shape in groups)), st.integers(0, 300), st.randoms())
@pytest.mark.slow
def test_layouts_predict_each_token_from_what_precedes_it(groups: list[Shape], row: int, random: object) -> None:
    """Token ids are unique, so that every source, target and mask entry can be traced to its completion."""
    counter = iter(range(1, 1 << 20))
    prompts = [np.array([next(counter) for _ in range(shape.prompt)], np.int32) for shape in groups]
    completions = [
        [np.array([next(counter) for _ in range(length)], np.int32) for length in shape.completions] for shape in groups
    ]
    sizes = [len(shape.completions) for shape in groups]
    first = [sum(sizes[:index]) for index in range(len(sizes))]
    seen: list[int] = []
    for batch in plan(groups, 400, row).micro_batches:
        layout = lay_out(batch, prompts, completions, first)
        targets, sources = layout.targets.tolist(), layout.tokens.flatten()[layout.at].tolist()
        table = layout.table(layout.targets)
        order = [(entry.group, member) for entry in batch for member in entry.members]
        at = 0
        for place, (group, member) in enumerate(order):
            whole = completions[group][member].tolist()
            assert targets[at : at + len(whole)] == whole == table[place][layout.mask[place]].tolist()
            assert sources[at : at + len(whole)] == [int(prompts[group][-1]), *whole[:-1]]
            at += len(whole)
        assert at == len(targets)
        seen += layout.samples.tolist()
    assert sorted(seen) == list(range(sum(sizes)))


def test_a_completion_attends_to_its_prompt_and_itself_only() -> None:
    rows = [Row(0, (0, 1), 6), Row(1, (0,), 3)]
    prompts = [np.array([5, 6], np.int32), np.array([7], np.int32)]
    completions = [[np.array([8, 9], np.int32), np.array([10, 11], np.int32)], [np.array([12, 13], np.int32)]]
    layout = lay_out(rows, prompts, completions, [0, 2])
    assert layout.attend is not None and layout.positions is not None
    visible = layout.attend[0, 0].int().tolist()
    assert visible == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]
    assert layout.positions[0].tolist() == [0, 1, 2, 3, 2, 3]
    assert bool(layout.attend.any(-1).all())  # no query without a key: softmax stays finite


def test_no_rows_give_a_layout_that_still_runs() -> None:
    layout = lay_out([], [], [], [])
    assert layout.tokens.shape == (1, 1) and layout.at.numel() == 0
    assert layout.table(torch.zeros(0)).shape == (0, 0)
