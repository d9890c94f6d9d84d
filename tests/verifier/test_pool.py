"""The thread pool of one queue and the completions it holds."""

from __future__ import annotations

import queue
import time

import pytest

from broker.queue.state import Work
from broker.queue.wire import Completion, Prompt, float32, int32
from tests.verifier.verifier_rig import Obedient
from verifier.pool import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Pool, Result


def work(entry: str, text: str) -> Work:
    completion = Completion(
        group_id="0:0",
        lane="train",
        prompt=0,
        idx=0,
        n=1,
        tokens=int32([1]),
        logprobs=float32([-1]),
        spans=((0, 0, 1),),
        finish="stop",
        text=text,
    )
    return Work(entry, completion, Prompt(index=0, text="", tokens=b"", verifier="obedient", record={}), 1)


@pytest.fixture
def done() -> queue.SimpleQueue[Result]:
    return queue.SimpleQueue()


def test_an_entry_received_twice_is_judged_once(done: queue.SimpleQueue[Result]) -> None:
    pool = Pool(Obedient(), 1, 60, done)
    pool.submit([work("1-0", "pass"), work("1-0", "pass"), work("2-0", "pass")])
    for _ in range(2):
        result = done.get(timeout=5)
        pool.accept(result.work, result.verdict)
        pool.accept(result.work, result.verdict)
    time.sleep(0.05)
    assert done.empty()
    assert (len(pool.in_hand), len(pool.judged), pool.under_way) == (2, 2, 0)
    pool.settled(["1-0", "2-0"])
    assert (len(pool.in_hand), len(pool.judged)) == (0, 0)
    pool.close()


def test_work_that_no_thread_has_begun_can_be_withdrawn(done: queue.SimpleQueue[Result]) -> None:
    pool = Pool(Obedient(), 1, 60, done)
    pool.submit([work("1-0", "sleep 0.3"), work("2-0", "pass"), work("3-0", "pass")])
    time.sleep(0.1)
    back = pool.withdraw()
    assert [item.entry for item in back] == ["2-0", "3-0"]
    assert pool.under_way == 3  # still held until the broker has taken them back
    pool.settled(item.entry for item in back)
    assert done.get(timeout=5).work.entry == "1-0"
    pool.close()


def test_a_verdict_after_its_deadline_is_ignored(done: queue.SimpleQueue[Result]) -> None:
    pool = Pool(Obedient(), 1, 0.1, done)
    pool.submit([work("1-0", "sleep 0.4")])
    time.sleep(0.2)
    pool.give_up_overdue()
    assert pool.judged["1-0"][1].reason == "deadline"
    pool.settled(["1-0"])
    late = done.get(timeout=5)
    pool.accept(late.work, late.verdict)
    assert (pool.judged, pool.left_behind, pool.threads) == ({}, 1, 1)
    pool.submit([work("2-0", "pass")])  # the replacement works
    assert done.get(timeout=5).verdict.outcome == "pass"
    pool.close()


def test_errors_alone_double_the_pause_up_to_a_limit_and_any_verdict_ends_it(done: queue.SimpleQueue[Result]) -> None:
    pool = Pool(Obedient(), 1, 60, done)
    assert pool.backing_off() == 0
    pool.note_health(all_errors=True)
    assert 0 < pool.backing_off() <= FIRST_PAUSE_SECONDS
    for _ in range(20):
        pool.note_health(all_errors=True)
    assert 0.9 * LONGEST_PAUSE_SECONDS < pool.backing_off() <= LONGEST_PAUSE_SECONDS
    pool.note_health(all_errors=False)
    assert pool.backing_off() == 0
    pool.close()


def test_closing_the_pool_closes_a_verifier_that_can_be_closed() -> None:
    class Holding:
        name, version, reasons = "holding", "1", frozenset({"told"})

        def __init__(self) -> None:
            self.closed = False

        def judge(self, record: object, answer: str) -> object:
            raise AssertionError("nothing is asked")

        def close(self) -> None:
            self.closed = True

    verifier = Holding()
    Pool(verifier, 2, 5.0, queue.SimpleQueue()).close()  # type: ignore[arg-type]
    assert verifier.closed
