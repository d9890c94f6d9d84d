"""`AdminClient.retry_dead`: a dead letter goes back while its group can take it, once, and every count stays right."""

from __future__ import annotations

import pytest

from broker.queue.state import Epoch
from tests.broker.builders import EveryRole, complete, connect, judge_all, offer_all, open_run, verdict


@pytest.fixture
def broker(redis_url: str):
    broker = connect(redis_url, lease_seconds=1, verify_attempts=1)
    yield broker
    broker.close()


def begin(broker: EveryRole, **change: object) -> Epoch:
    open_run(broker, steps=1, groups_per_step=1, max_staleness=0, **change)
    hold = broker.begin("learner")
    broker.publish(hold, 0, 0)
    return hold


def one_dead(broker: EveryRole, others: str | None = "pass") -> str:
    """One group of two: the first completion becomes a dead letter, the second is judged `others` (None: not yet)."""
    offer_all(broker, "a", broker.take("a", 2).tickets)
    first, second = broker.receive("arithmetic", "v", 10, 0.01)
    assert broker.judge("arithmetic", "v", [(first, verdict("error"))]) == ["dead"]
    if others is not None:
        broker.judge("arithmetic", "v", [(second, verdict(others))])  # type: ignore[arg-type]
    return broker.dead_letters()[0].entry


def counts(broker: EveryRole) -> tuple[int, int, int, int]:
    audit = broker.audit()
    return audit.lost, audit.dead_letters, len(broker.dead_letters()), broker.depths().ready


def test_a_letter_goes_back_into_a_group_that_is_still_being_judged(broker):
    begin(broker)
    entry = one_dead(broker, others=None)
    assert broker.retry_dead(entry) == "retried"
    assert counts(broker) == (0, 0, 0, 0)
    (again,) = broker.receive("arithmetic", "w", 10, 0.01)
    assert (again.completion.text, again.attempt) == ("answer 0", 1)
    broker.judge("arithmetic", "w", [(again, verdict())])
    assert broker.depths().ready == 0  # the other one is still in hand


def test_a_ready_group_is_taken_back_and_becomes_whole(broker):
    hold = begin(broker)
    entry = one_dead(broker)
    assert counts(broker) == (0, 1, 1, 1)
    assert broker.retry_dead(entry) == "retried"
    assert counts(broker) == (0, 0, 0, 0)
    assert broker.lease(hold, 1, 1) is None
    judge_all(broker, "w")
    (group_id,) = broker.lease(hold, 1, 1) or []
    (group,) = broker.groups([group_id])
    assert (len(group.members), group.closed_short) == (2, 0)
    broker.publish(hold, 1, 1)
    broker.commit(hold, 1, "checkpoint")
    audit = broker.audit()
    assert (audit.trained_completions, audit.lost, audit.duplicates, audit.bytes) == (2, 0, 0, 0)


def test_a_second_retry_of_the_same_letter_changes_nothing(broker):
    begin(broker)
    entry = one_dead(broker)
    assert [broker.retry_dead(entry) for _ in range(3)] == ["retried", "gone", "gone"]
    assert broker.depths().verify == {"arithmetic": 1}
    assert counts(broker)[:3] == (0, 0, 0)


def test_a_reply_that_was_lost_is_answered_again_without_a_second_try(broker):
    begin(broker)
    entry = one_dead(broker)
    assert broker.script("retry_dead", entry=entry, oldest=0) == b"retried"
    assert broker.script("retry_dead", entry=entry, oldest=0) == b"gone"
    assert broker.depths().verify == {"arithmetic": 1}


def test_a_letter_that_fails_again_is_a_letter_again(broker):
    begin(broker)
    assert broker.retry_dead(one_dead(broker)) == "retried"
    judge_all(broker, "w", "error")
    assert counts(broker) == (0, 1, 1, 1)
    assert broker.retry_dead(broker.dead_letters()[0].entry) == "retried"


def test_it_is_too_late_once_the_group_is_leased_committed_or_empty(broker):
    hold = begin(broker, train_prompts=5)
    entry = one_dead(broker)
    assert broker.lease(hold, 1, 1)
    assert broker.retry_dead(entry) == "closed"
    broker.publish(hold, 1, 1)
    broker.commit(hold, 1, "checkpoint")
    assert broker.retry_dead(entry) == "closed"
    assert counts(broker)[:3] == (0, 1, 1)


def test_a_group_that_ended_empty_stays_ended(broker):
    begin(broker)
    entry = one_dead(broker, others="error")
    assert broker.audit().dropped == 1
    assert broker.retry_dead(entry) == "closed"
    assert broker.audit().lost == 0


def test_an_evaluation_is_retried_while_open_and_not_once_ready(broker):
    hold = begin(broker)
    broker.request_eval(hold, 0, 1, 2)
    (ticket,) = broker.take("a", 2).tickets
    assert ticket.lane == "eval"
    broker.offer("a", [complete(ticket, 0), complete(ticket, 1)])
    first, second = broker.receive("arithmetic", "v", 10, 0.01)
    broker.judge("arithmetic", "v", [(first, verdict("error"))])
    entry = broker.dead_letters()[0].entry
    assert broker.retry_dead(entry) == "retried"
    judge_all(broker, "v", "error")
    broker.judge("arithmetic", "v", [(second, verdict())])
    assert broker.eval_ready(0) == ["e0:0"]
    assert broker.retry_dead(broker.dead_letters()[0].entry) == "closed"
    broker.eval_done(hold, 0)
    assert broker.audit().bytes == 0


def test_an_unreadable_letter_and_an_unknown_name_have_answers_of_their_own(broker):
    begin(broker)
    broker._redis.xadd(broker._key("dead"), {"g": "0:0", "i": "0", "verifier": "x", "reason": "r", "p": b"\x01"})
    assert broker.retry_dead(broker.dead_letters()[0].entry) == "unreadable"
    assert [broker.retry_dead(name) for name in ("", "0-0", "nonsense", "1-1; DEL x")] == ["gone"] * 4
