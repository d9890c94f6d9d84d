"""The threads that judge for one queue, and the account of what is in hand.

One thread (the service's loop) owns a Pool; only `todo`, `done` and each worker's `current` cross threads. A completion
is in hand from `submit` until `settled`: judged and acknowledged by the broker, or put back. Python threads cannot be
killed, so a verdict past its deadline is answered `error` here and its thread is left behind and replaced; the service
ends when too many are left behind. Never talks to the broker.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from broker.queue.state import Work
from broker.queue.wire import Verdict
from verifier.protocol import Verifier, verdict

Judged = tuple[Work, Verdict]
SMOOTHING = 0.1
"""Weight of the newest verdict in the moving average of seconds per verdict."""

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Result:
    """One verdict on its way from a thread to the loop."""

    pool: Pool
    work: Work
    verdict: Verdict


class Pool:
    """`threads` threads around one verifier. Results of all pools of a service go to one `done` queue."""

    def __init__(
        self, verifier: Verifier, threads: int, deadline_seconds: float, done: queue.SimpleQueue[Result]
    ) -> None:
        self.verifier = verifier
        self.name = verifier.name
        self.deadline_seconds = deadline_seconds
        self.in_hand: dict[str, Work] = {}
        """By entry; the keep-alive thread copies its keys."""
        self.judged: dict[str, Judged] = {}
        """The part of in_hand that waits for the broker's acknowledgement."""
        self.seconds: float | None = None
        """Moving average of seconds per verdict; None before the first."""
        self.left_behind = 0
        self._pause, self._resume_at = 0.0, 0.0
        self._done = done
        self._todo: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._workers = [self._start() for _ in range(threads)]

    @property
    def threads(self) -> int:
        """Verdicts that can be under way at once."""
        return len(self._workers)

    @property
    def under_way(self) -> int:
        """In hand and without a verdict."""
        return len(self.in_hand) - len(self.judged)

    def submit(self, works: Iterable[Work]) -> None:
        """Queue completions for the threads; one that is in hand already is not judged twice."""
        for work in works:
            if work.entry not in self.in_hand:
                self.in_hand[work.entry] = work
                self._todo.put(work)

    def known(self, work: Work, verdict: Verdict) -> None:
        """Take work whose verdict is known already: in hand and judged at once, no thread has to do with it."""
        if work.entry not in self.in_hand:
            self.in_hand[work.entry] = work
            self.judged[work.entry] = (work, verdict)

    def accept(self, work: Work, verdict: Verdict) -> None:
        """Note a verdict; ignored if the work was answered (deadline) or put back meanwhile."""
        if work.entry not in self.in_hand or work.entry in self.judged:
            return
        self.judged[work.entry] = (work, verdict)
        if self.seconds is None:
            self.seconds = verdict.seconds
        else:
            self.seconds += SMOOTHING * (verdict.seconds - self.seconds)

    def settled(self, entries: Iterable[str]) -> None:
        """These are no longer ours."""
        for entry in entries:
            self.in_hand.pop(entry, None)
            self.judged.pop(entry, None)

    def give_up_overdue(self) -> None:
        """Answer `error`/`deadline` for every verdict that takes too long, and replace its thread."""
        now = time.monotonic()
        label = f"{self.verifier.name}/{self.verifier.version}"
        for place, worker in enumerate(self._workers):
            current = worker.current
            if current is None or now - current[1] <= self.deadline_seconds:
                continue
            worker.left_behind = True
            self.left_behind += 1
            self._workers[place] = self._start()
            self.accept(
                current[0],
                Verdict(
                    outcome="error",
                    reason="deadline",
                    seconds=now - current[1],
                    verifier=label,
                    detail=f"no verdict within {self.deadline_seconds:g} s",
                ),
            )

    def note_health(self, all_errors: bool) -> None:
        """After each delivery: nothing but errors doubles the pause before more is received, anything else ends it."""
        self._pause = min(max(2 * self._pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS) if all_errors else 0.0
        self._resume_at = time.monotonic() + self._pause

    def backing_off(self) -> float:
        """Seconds until more work should be received; 0 while the verifier is well."""
        return max(0.0, self._resume_at - time.monotonic())

    def withdraw(self) -> list[Work]:
        """Take back what no thread has begun; it stays in hand until `settled`."""
        works: list[Work] = []
        while True:
            try:
                work = self._todo.get_nowait()
            except queue.Empty:
                return works
            if work is not None:
                works.append(work)

    def close(self) -> None:
        """Let idle threads end, and with them what the verifier holds (processes, a sandbox), if it can be closed.

        A thread in the middle of a verdict ends with it, or with the process; its verifier is then left alone.
        """
        for _ in self._workers:
            self._todo.put(None)
        release = getattr(self.verifier, "close", None)
        if release is not None and all(worker.current is None for worker in self._workers):
            release()

    def _start(self) -> _Worker:
        worker = _Worker(self, self._todo, self._done)
        worker.start()
        return worker


class _Worker(threading.Thread):
    def __init__(self, pool: Pool, todo: queue.SimpleQueue[Work | None], done: queue.SimpleQueue[Result]) -> None:
        super().__init__(name=f"judge-{pool.name}", daemon=True)
        self.current: tuple[Work, float] | None = None
        """What is being judged and since when (monotonic seconds)."""
        self.left_behind = False
        self._pool, self._todo, self._done = pool, todo, done

    def run(self) -> None:
        while not self.left_behind and (work := self._todo.get()) is not None:
            self.current = (work, time.monotonic())
            said = verdict(self._pool.verifier, work.completion, work.prompt)
            self.current = None
            self._done.put(Result(self._pool, work, said))


def share(threads: int, batch: int, prefetch_seconds: float, seconds: float | None) -> int:
    """How many completions a process should hold: one for each thread, and ahead of that `prefetch_seconds` of work.

    `seconds` is the time of one verdict, None while unknown. Between `threads` and `batch`, so that a slow verifier
    hoards nothing that another process could do, and a fast one pays few round trips.
    """
    if seconds is None:
        return threads
    ahead = batch if seconds <= 0 else min(batch, int(min(prefetch_seconds / seconds, float(batch)) * threads))
    return max(threads, ahead)
