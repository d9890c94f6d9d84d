"""Long calls: split into portions that are atomic each, with every completion judged or refused on its own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.queue.portions import BYTES, ITEMS, chunks, portions
from broker.runtime.endpoint import connect_once
from tests.broker.builders import begin, complete, connect, open_run, verdict


@given(st.lists(st.integers(0, 2 * BYTES), max_size=600))
def test_portions_cover_all_items_in_order_within_both_limits(sizes: list[int]) -> None:
    found = portions(sizes)
    assert [at for start, end in found for at in range(start, end)] == list(range(len(sizes)))
    for start, end in found:
        assert end - start == 1 or (end - start <= ITEMS and sum(sizes[start:end]) <= BYTES)


@given(st.lists(st.integers(), max_size=600))
def test_chunks_cover_all_items_in_order_within_the_limit(items: list[int]) -> None:
    found = list(chunks(items))
    assert [item for chunk in found for item in chunk] == items
    assert all(1 <= len(chunk) <= ITEMS for chunk in found)


def test_a_completion_offered_twice_in_one_call_enters_the_queue_once(redis_url: str) -> None:
    broker = connect(redis_url)
    open_run(broker, group_size=2)
    broker.publish(begin(broker), 0, 0)
    ticket = broker.take("a", 2).tickets[0]
    one, two = complete(ticket, 0), complete(ticket, 1)
    assert broker.offer("a", [one, one, two]) == ["new", "duplicate", "new"]
    assert len(broker.receive("arithmetic", "v", 10, 0.01)) == 2
    assert broker.depths().repeated_offers == 1


def test_one_call_may_hold_verdicts_of_every_kind(redis_url: str) -> None:
    broker = connect(redis_url, verify_attempts=2)
    open_run(broker, group_size=4, groups_per_step=1)
    epoch = begin(broker)
    broker.publish(epoch, 0, 0)
    ticket = broker.take("a", 4).tickets[0]
    broker.offer("a", [complete(ticket, idx) for idx in range(4)])
    works = broker.receive("arithmetic", "v", 10, 0.01)
    said = [
        (works[0], verdict("pass")),
        (works[0], verdict("fail")),
        (works[1], verdict("error")),
        (works[2], verdict("fail")),
    ]
    assert broker.judge("arithmetic", "v", said) == ["done", "duplicate", "retry", "done"]
    assert broker.lease(epoch, 1, 1) is None
    again = broker.receive("arithmetic", "v", 10, 0.01)
    assert [(work.completion.idx, work.attempt) for work in again] == [(works[1].completion.idx, 2)]
    # The last attempt of one and the only one of another end the group: one short, in one call.
    assert broker.judge("arithmetic", "v", [(again[0], verdict("error")), (works[3], verdict("pass"))]) == [
        "dead",
        "done",
    ]
    group_ids = broker.lease(epoch, 1, 1)
    assert group_ids == [ticket.group_id]
    group = broker.groups(group_ids)[0]
    assert (len(group.members), group.closed_short) == (3, 1)
    audit = broker.audit()
    assert (audit.lost, audit.duplicates, audit.dead_letters, audit.repeated_verdicts) == (0, 0, 1, 1)


@pytest.mark.parametrize("tokens", [3, 20_000])
def test_queued_bytes_return_to_zero_whatever_the_portions(redis_url: str, tokens: int) -> None:
    broker = connect(redis_url)
    open_run(broker, group_size=8, groups_per_step=2, max_queued_bytes=1 << 30)
    epoch = begin(broker)
    broker.publish(epoch, 0, 0)
    tickets = broker.take("a", 16).tickets
    offered = [complete(ticket, idx, tokens=tokens) for idx in range(8) for ticket in tickets]
    assert set(broker.offer("a", offered)) == {"new"}
    assert broker.depths().queued_bytes > 16 * tokens * 8
    judged = 0
    while judged < 16:
        works = broker.receive("arithmetic", "v", 5, 1.0)
        judged += broker.judge("arithmetic", "v", [(work, verdict()) for work in works]).count("done")
    group_ids = broker.lease(epoch, 1, 2)
    assert group_ids is not None
    for group in broker.groups(group_ids):
        assert [member.completion.idx for member in group.members] == list(range(8))
        assert all(len(member.completion.ids) == tokens for member in group.members)
    broker.commit(epoch, 1, "checkpoint")
    assert broker.depths().queued_bytes == 0
    assert broker.audit().lost == 0


def test_a_server_that_forgot_its_scripts_is_given_them_again(redis_url: str) -> None:
    broker = connect(redis_url)
    open_run(broker, group_size=2)
    broker.publish(begin(broker), 0, 0)
    first, second = broker.take("a", 4).tickets
    broker.offer("a", [complete(first, 0)])
    with connect_once(redis_url) as client:
        client.script_flush()
    assert broker.offer("a", [complete(first, 1), complete(second, 0)]) == ["new", "new"]
