"""Deliveries that bring no verdict: each is an attempt, and its completion is judged alone, and in the end given up."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from broker.queue.verifier_client import GROUP
from tests.broker.builders import EveryRole, connect, offer_all, open_run, verdict

NewConsumer = Callable[[], EveryRole]


@pytest.fixture
def broker(redis_url: str) -> Iterator[EveryRole]:
    broker = connect(redis_url, verify_attempts=3)
    open_run(broker, steps=1, groups_per_step=1, max_staleness=0, group_size=3)
    broker.publish(broker.begin("learner"), 0, 0)
    offer_all(broker, "a", broker.take("a", 1).tickets)
    yield broker
    broker.close()


@pytest.fixture
def after_the_lease(broker: EveryRole, redis_url: str) -> Iterator[NewConsumer]:
    """Lets everything that is delivered grow older than the lease, and connects a new consumer."""
    opened: list[EveryRole] = []

    def next_one() -> EveryRole:
        queue = broker._key("verify:arithmetic")
        for pending in broker._redis.xpending_range(queue, GROUP, "-", "+", 10):
            entry, owner = pending["message_id"], pending["consumer"]
            broker._redis.xclaim(queue, GROUP, owner, 0, [entry], idle=3_600_000, justid=True)
        opened.append(connect(redis_url, verify_attempts=3))
        return opened[-1]

    yield next_one
    for one in opened:
        one.close()


def test_what_a_dead_consumer_held_is_judged_one_by_one_and_only_what_kills_is_given_up(broker, after_the_lease):
    held = broker.receive("arithmetic", "v1", 10, 0.0)
    assert [(work.attempt, work.alone) for work in held] == [(1, False)] * 3
    poison = held[1].completion.idx
    given = 0
    for consumer in ("v2", "v3", "v4"):
        client = after_the_lease()
        works = client.receive("arithmetic", consumer, 10, 0.0)
        while works and works[0].completion.idx != poison:
            assert [(work.attempt, work.alone) for work in works] == [(2, True)]
            assert client.judge("arithmetic", consumer, [(works[0], verdict())]) == ["done"]
            works = client.receive("arithmetic", consumer, 10, 0.0)
        given += len(works)  # each consumer that got the poison has ended
    assert given == 2
    (letter,) = broker.dead_letters()
    assert (letter.idx, letter.reason, letter.verdict) == (str(poison), "no_verdict", None)
    assert letter.history == tuple(f"{name} gave no verdict" for name in ("v1", "v2", "v3"))
    audit = broker.audit()
    assert (audit.lost, audit.dead_letters, broker.depths().ready) == (0, 1, 1)


def test_deliveries_and_errors_are_counted_together_and_listed(broker, after_the_lease):
    first, *others = broker.receive("arithmetic", "v1", 10, 0.0)
    broker.judge("arithmetic", "v1", [(work, verdict()) for work in others])
    (work,) = after_the_lease().receive("arithmetic", "v2", 10, 0.0)
    assert broker.requeue("arithmetic", [work]) == 1  # v2 is stopped: its own delivery does not count
    (work,) = broker.receive("arithmetic", "v3", 10, 0.0)
    assert (work.completion.idx, work.attempt) == (first.completion.idx, 2)
    assert broker.judge("arithmetic", "v3", [(work, verdict("error"))]) == ["retry"]
    (work,) = broker.receive("arithmetic", "v4", 10, 0.0)
    assert work.attempt == 3
    assert broker.judge("arithmetic", "v4", [(work, verdict("error"))]) == ["dead"]
    (letter,) = broker.dead_letters()
    reason = letter.verdict.reason
    assert letter.history == ("v1 gave no verdict", f"v3 error {reason}", f"v4 error {reason}")


def test_a_consumer_that_holds_other_work_is_not_given_what_may_end_it(broker, after_the_lease):
    broker.receive("arithmetic", "v1", 1, 0.0)
    client = after_the_lease()
    (new,) = client.receive("arithmetic", "v2", 1, 0.0, free=False)
    assert (new.attempt, new.alone) == (1, False)
    assert client.has_left_behind("arithmetic")


def test_a_letter_that_is_retried_starts_with_all_attempts_and_no_history(broker, after_the_lease):
    broker.receive("arithmetic", "v1", 1, 0.0)
    for consumer in ("v2", "v3", "v4"):
        after_the_lease().receive("arithmetic", consumer, 1, 0.0)
    (letter,) = broker.dead_letters()
    assert broker.retry_dead(letter.entry) == "retried"
    works = after_the_lease().receive("arithmetic", "v5", 10, 0.0)
    assert works
    assert {work.attempt for work in broker.receive("arithmetic", "v6", 10, 0.0)} <= {1}


def test_work_of_a_dead_consumer_is_claimed_also_while_redis_is_full(broker, after_the_lease):
    broker.receive("arithmetic", "v1", 1, 0.0)
    client = after_the_lease()
    limit = broker._redis.config_get("maxmemory")["maxmemory"]
    broker._redis.config_set("maxmemory", "1mb")
    try:
        (work,) = client.receive("arithmetic", "v2", 10, 0.0)
    finally:
        broker._redis.config_set("maxmemory", limit)
    assert (work.attempt, work.alone) == (2, True)
