"""Broadcasts at the broker: who is a member, with which ranks, how tensors are packed, what a version number means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import Fenced
from broker.queue.heartbeat import Heartbeat
from broker.weights.broadcast import (
    ALIGN,
    JOIN,
    Entry,
    Group,
    Layout,
    Tensor,
    Transfers,
    awaited,
    length,
    outcome,
    packs,
    seats,
    unacknowledged,
)
from tests.broker.builders import connect, open_run

ENTRIES = st.lists(
    st.builds(
        Entry,
        actor=st.text("abcdef", min_size=1, max_size=4),
        ranks=st.integers(1, 16),
        alive=st.booleans(),
        answer=st.sampled_from(["", JOIN, "an evaluation"]),
        ack=st.sampled_from(["", "right", "wrong", "!it broke"]),
    ),
    unique_by=lambda entry: entry.actor,
    max_size=8,
)
LAYOUTS = st.builds(
    Layout,
    tensors=st.lists(
        st.builds(
            Tensor,
            name=st.text("xyz", min_size=1),
            dtype=st.just("float32"),
            shape=st.lists(st.integers(0, 9), max_size=3).map(tuple),
            itemsize=st.sampled_from([1, 2, 4, 8]),
        ),
        min_size=1,
        max_size=12,
    ).map(tuple),
    pack_bytes=st.integers(1, 600),
)


def group(entries: list[Entry]) -> Group | None:
    found = seats(entries)
    return Group(id="g", seats=found, meeting={}, seconds=1) if found else None


@given(ENTRIES)
def test_ranks_are_each_taken_once_by_living_actors_that_joined(entries):
    taken = [rank for seat in seats(entries) for rank in range(seat.first, seat.first + seat.ranks)]
    joined = {entry.actor: entry.ranks for entry in entries if entry.alive and entry.answer == JOIN}
    assert taken == list(range(1, 1 + sum(joined.values())))
    assert {seat.actor: seat.ranks for seat in seats(entries)} == joined
    if (found := group(entries)) is not None:
        assert found.world == len(taken) + 1


@given(ENTRIES, st.randoms())
def test_the_same_members_sit_the_same_way_so_that_their_group_is_used_again(entries, random):
    before = seats(entries)
    random.shuffle(entries)
    assert seats(entries) == before


@given(ENTRIES, ENTRIES)
def test_every_invited_actor_ends_up_with_the_version_or_with_a_cause(invited, now):
    members = group(invited)
    found = outcome(invited, members, now, "right")
    assert sorted([*found.received, *found.missed]) == sorted(entry.actor for entry in invited)
    acks = {entry.actor: entry.ack for entry in now}
    for actor in found.received:
        assert members is not None and members.seat(actor) is not None and acks[actor] == "right"
    for actor, (cause, _) in found.missed.items():
        assert (members is None or members.seat(actor) is None) == (cause in ("declined", "late")) or cause == "dead"


@given(ENTRIES)
def test_nobody_dead_is_waited_for(entries):
    alive = {entry.actor for entry in entries if entry.alive}
    assert set(awaited(entries)) <= alive
    members = group([Entry(e.actor, e.ranks, True, JOIN, "") for e in entries])
    if members is not None:
        assert set(unacknowledged(members, entries)) == {e.actor for e in entries if e.alive and not e.ack}


@given(LAYOUTS)
def test_packs_hold_every_tensor_once_in_order_aligned_and_apart(layout):
    found = packs(layout)
    assert [tensor for pack in found for tensor, _ in pack] == list(layout.tensors)
    for pack in found:
        end = 0
        for tensor, start in pack:
            assert start >= end and start % ALIGN == 0
            end = start + tensor.bytes
        assert end == length(pack)
        assert len(pack) == 1 or length(pack) <= layout.pack_bytes


LAYOUT = Layout(tensors=(Tensor(name="w", dtype="float32", shape=(2, 3), itemsize=4),))


@pytest.fixture
def run(redis_url):
    broker = connect(redis_url)
    open_run(broker)
    return broker, Transfers(broker), broker.begin("learner")


def beat(broker, actor: str) -> None:
    broker.heartbeat(Heartbeat(id=actor, role="actor", phase="sampling", since=0))


def seat(actor: str) -> Group:
    return Group(id="g", seats=seats([Entry(actor, 2, True, JOIN, "")]), meeting={"port": 1}, seconds=5)


def test_a_transfer_from_invitation_to_acknowledgement_each_call_repeated(run):
    broker, here, epoch = run
    beat(broker, "a")
    for _ in range(2):
        assert here.seen("a", 2) == ("", 0, "")
        assert not here.answer("a", 2, "t1", JOIN)
    for _ in range(2):
        assert here.open(epoch, "t1", 1, LAYOUT) == [Entry("a", 2, True, "", "")]
        assert here.seen("a", 2) == ("t1", 1, "open")
        assert here.members("t1") is None
    for _ in range(2):
        assert here.answer("a", 2, "t1", JOIN)
    assert here.look(epoch, "t1", 1) == [Entry("a", 2, True, JOIN, "")]
    for _ in range(2):
        here.fix(epoch, "t1", 1, seat("a"))
    assert not here.answer("a", 2, "t1", JOIN)
    assert here.members("t1") == (seat("a"), LAYOUT)
    assert here.members("t0") is None
    for _ in range(2):
        here.acknowledge("a", 2, "t1", "digest")
    assert here.over(epoch, "t1", 1) == [Entry("a", 2, True, JOIN, "digest")]
    assert here.seen("a", 2) == ("t1", 1, "over")
    # A late word on it does not touch the next one.
    assert here.open(epoch, "t2", 2, LAYOUT) == [Entry("a", 2, True, "", "")]
    here.acknowledge("a", 2, "t1", "digest")
    assert here.look(epoch, "t2", 2) == [Entry("a", 2, True, "", "")]
    here.leave("a")
    assert here.look(epoch, "t2", 2) == []


def test_who_is_dead_or_late_is_not_waited_for_again_until_it_shows_itself(run):
    broker, here, epoch = run
    beat(broker, "late")
    here.seen("late", 1)
    here.seen("dead", 1)
    assert {(e.actor, e.alive) for e in here.open(epoch, "t1", 1, LAYOUT)} == {("late", True), ("dead", False)}
    here.fix(epoch, "t1", 1, seat("other"))
    assert here.open(epoch, "t2", 2, LAYOUT) == []
    here.seen("late", 1)
    assert [e.actor for e in here.look(epoch, "t2", 2)] == ["late"]


def test_a_version_that_was_sent_is_never_used_again_by_a_learner_that_starts_anew(run):
    broker, here, epoch = run
    broker.publish(epoch, 0, 0)
    here.open(epoch, "t1", 1, LAYOUT)
    again = broker.begin("learner")
    assert (again.version, broker.version()) == (1, 0)
    with pytest.raises(Fenced):
        here.open(epoch, "t2", 2, LAYOUT)
    broker.publish(again, 2, 0)
    assert broker.begin("learner").version == 2
