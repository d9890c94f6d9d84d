"""Coordination of broadcasts: participants and their ranks, the packing of tensors, the meaning of version numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import Fenced
from broker.queue.heartbeat import Heartbeat
from broker.weights.broadcast import (
    ALIGN,
    JOIN,
    BroadcastCoordinator,
    Communicator,
    Layout,
    ReceiverState,
    Tensor,
    length,
    outcome,
    packs,
    participants,
    unacknowledged,
    unanswered,
)
from tests.broker.builders import connect, open_run

ENTRIES = st.lists(
    st.builds(
        ReceiverState,
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


def group(entries: list[ReceiverState]) -> Communicator | None:
    found = participants(entries)
    return Communicator(id="g", participants=found, rendezvous={}, seconds=1) if found else None


@given(ENTRIES)
def test_ranks_are_each_taken_once_by_living_actors_that_joined(entries):
    taken = [rank for one in participants(entries) for rank in range(one.first_rank, one.first_rank + one.ranks)]
    joined = {entry.actor: entry.ranks for entry in entries if entry.alive and entry.answer == JOIN}
    assert taken == list(range(1, 1 + sum(joined.values())))
    assert {one.actor: one.ranks for one in participants(entries)} == joined
    if (found := group(entries)) is not None:
        assert found.world_size == len(taken) + 1


@given(ENTRIES, st.randoms())
def test_the_same_actors_get_the_same_ranks_so_that_their_communicator_is_reused(entries, random):
    before = participants(entries)
    random.shuffle(entries)
    assert participants(entries) == before


@given(ENTRIES, ENTRIES)
def test_every_invited_actor_ends_up_with_the_version_or_with_a_cause(invited, now):
    members = group(invited)
    found = outcome(invited, members, now, "right")
    assert sorted([*found.received, *found.missed]) == sorted(entry.actor for entry in invited)
    acks = {entry.actor: entry.ack for entry in now}
    for actor in found.received:
        assert members is not None and members.participant(actor) is not None and acks[actor] == "right"
    for actor, (cause, _) in found.missed.items():
        assert (members is None or members.participant(actor) is None) == (
            cause in ("declined", "late")
        ) or cause == "dead"


@given(ENTRIES)
def test_dead_actors_are_not_waited_for(entries):
    alive = {entry.actor for entry in entries if entry.alive}
    assert set(unanswered(entries)) <= alive
    members = group([ReceiverState(e.actor, e.ranks, True, JOIN, "") for e in entries])
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
    return broker, BroadcastCoordinator(broker), broker.begin("learner")


def beat(broker, actor: str) -> None:
    broker.heartbeat(Heartbeat(id=actor, role="actor", phase="sampling"))


def alone(actor: str) -> Communicator:
    return Communicator(
        id="g", participants=participants([ReceiverState(actor, 2, True, JOIN, "")]), rendezvous={"port": 1}, seconds=5
    )


def test_a_broadcast_from_invitation_to_acknowledgement_with_each_call_repeated(run):
    broker, here, epoch = run
    beat(broker, "a")
    for _ in range(2):
        assert here.current("a", 2) == ("", 0, "")
        assert not here.answer("a", 2, "t1", JOIN)
    for _ in range(2):
        assert here.invite(epoch, "t1", 1, LAYOUT) == [ReceiverState("a", 2, True, "", "")]
        assert here.current("a", 2) == ("t1", 1, "open")
        assert here.communicator("t1") is None
    for _ in range(2):
        assert here.answer("a", 2, "t1", JOIN)
    assert here.receivers(epoch, "t1", 1) == [ReceiverState("a", 2, True, JOIN, "")]
    for _ in range(2):
        here.fix(epoch, "t1", 1, alone("a"))
    assert not here.answer("a", 2, "t1", JOIN)
    assert here.communicator("t1") == (alone("a"), LAYOUT)
    assert here.communicator("t0") is None
    for _ in range(2):
        here.acknowledge("a", 2, "t1", "digest")
    assert here.end(epoch, "t1", 1) == [ReceiverState("a", 2, True, JOIN, "digest")]
    assert here.current("a", 2) == ("t1", 1, "over")
    # A late acknowledgement does not touch the next broadcast.
    assert here.invite(epoch, "t2", 2, LAYOUT) == [ReceiverState("a", 2, True, "", "")]
    here.acknowledge("a", 2, "t1", "digest")
    assert here.receivers(epoch, "t2", 2) == [ReceiverState("a", 2, True, "", "")]
    here.leave("a")
    assert here.receivers(epoch, "t2", 2) == []


def test_a_dead_or_late_actor_is_invited_again_only_once_it_shows_itself(run):
    broker, here, epoch = run
    beat(broker, "late")
    here.current("late", 1)
    here.current("dead", 1)
    assert {(e.actor, e.alive) for e in here.invite(epoch, "t1", 1, LAYOUT)} == {("late", True), ("dead", False)}
    here.fix(epoch, "t1", 1, alone("other"))
    assert here.invite(epoch, "t2", 2, LAYOUT) == []
    here.current("late", 1)
    assert [e.actor for e in here.receivers(epoch, "t2", 2)] == ["late"]


def test_a_version_that_was_sent_is_never_used_again_by_a_learner_that_starts_anew(run):
    broker, here, epoch = run
    broker.publish(epoch, 0, 0)
    here.invite(epoch, "t1", 1, LAYOUT)
    again = broker.begin("learner")
    assert (again.used_version, again.version, broker.version()) == (1, 0, 0)
    with pytest.raises(Fenced):
        here.invite(epoch, "t2", 2, LAYOUT)
    broker.publish(again, 2, 0)
    assert broker.begin("learner").used_version == 2
