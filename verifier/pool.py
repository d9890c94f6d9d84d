"""The thread pool of one queue, with a record of the completions it holds.

One thread (the service's loop) owns a Pool; only `todo`, `done` and each worker's `current` are shared between threads.
A completion is in hand from `submit` until `settled`: judged and acknowledged by the broker, or requeued. Python
threads cannot be killed, so a verdict past its deadline becomes `error` here, and its thread is abandoned and replaced;
the service ends when too many threads have been abandoned. A Pool makes no calls to the broker.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from broker.queue.state import Work
from broker.queue.wire import Verdict
from verifier.protocol import Verifier, label, verdict

Judged = tuple[Work, Verdict]
SMOOTHING = 0.1
"""Weight of the newest verdict in the exponential moving average of seconds per verdict."""

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Result:
    """One verdict on its way from a thread to the service's loop."""

    pool: Pool
    work: Work
    verdict: Verdict


class Pool:
    """`threads` threads that call one verifier. The results of all pools of a service go to one `done` queue."""

    def __init__(
        self, verifier: Verifier, threads: int, deadline_seconds: float, done: queue.SimpleQueue[Result]
    ) -> None:
        self.verifier = verifier
        self.name = verifier.name
        self.deadline_seconds = deadline_seconds
        self.in_hand: dict[str, Work] = {}
        """Completions held, by stream entry; the keep-alive thread copies the keys."""
        self.judged: dict[str, Judged] = {}
        """The part of `in_hand` that has a verdict and awaits the broker's acknowledgement."""
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
        """Number of completions in hand without a verdict."""
        return len(self.in_hand) - len(self.judged)

    def submit(self, works: Iterable[Work]) -> None:
        """Queue completions for the threads; those in hand already are skipped."""
        for work in works:
            if work.entry not in self.in_hand:
                self.in_hand[work.entry] = work
                self._todo.put(work)

    def accept_cached(self, work: Work, verdict: Verdict) -> None:
        """Take work together with its cached verdict; no thread judges it."""
        if work.entry not in self.in_hand:
            self.in_hand[work.entry] = work
            self.judged[work.entry] = (work, verdict)

    def accept(self, work: Work, verdict: Verdict) -> None:
        """Record a verdict; ignored if the work has one already (its deadline passed) or was requeued."""
        if work.entry not in self.in_hand or work.entry in self.judged:
            return
        self.judged[work.entry] = (work, verdict)
        if self.seconds is None:
            self.seconds = verdict.seconds
        else:
            self.seconds += SMOOTHING * (verdict.seconds - self.seconds)

    def settled(self, entries: Iterable[str]) -> None:
        """Drop entries that the broker has acknowledged or taken back."""
        for entry in entries:
            self.in_hand.pop(entry, None)
            self.judged.pop(entry, None)

    def give_up_overdue(self) -> None:
        """Record `error`/`deadline` for every verdict past its deadline, and replace its thread."""
        now = time.monotonic()
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
                    verifier=label(self.verifier),
                    detail=f"no verdict within {self.deadline_seconds:g} s",
                ),
            )

    def note_health(self, all_errors: bool) -> None:
        """Update the backoff after a delivery: only errors double the pause before the next receive, else it ends."""
        self._pause = min(max(2 * self._pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS) if all_errors else 0.0
        self._resume_at = time.monotonic() + self._pause

    def backing_off(self) -> float:
        """Seconds until more work should be received; 0 unless the last verdicts were all errors."""
        return max(0.0, self._resume_at - time.monotonic())

    def withdraw(self) -> list[Work]:
        """Return the work that no thread has begun; it stays in hand until `settled`."""
        works: list[Work] = []
        while True:
            try:
                work = self._todo.get_nowait()
            except queue.Empty:
                return works
            if work is not None:
                works.append(work)

    def close(self) -> None:
        """End idle threads, and close the verifier (its processes, its sandbox) if it has a method `close`.

        A thread in the middle of a verdict ends after it or with the process; the verifier is then not closed.
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
        """The work being judged and when it began (monotonic seconds)."""
        self.left_behind = False
        self._pool, self._todo, self._done = pool, todo, done

    def run(self) -> None:
        while not self.left_behind and (work := self._todo.get()) is not None:
            self.current = (work, time.monotonic())
            said = verdict(self._pool.verifier, work.completion, work.prompt)
            self.current = None
            self._done.put(Result(self._pool, work, said))


def share(threads: int, batch: int, prefetch_seconds: float, seconds: float | None) -> int:
    """How many completions a process should hold: one for each thread, or more if `prefetch_seconds` of work is more.

    `seconds` is the average time of one verdict, None while unknown. The result lies between `threads` and `batch`, so
    that a slow verifier holds no work that another process could do and a fast one needs few round trips.
    """
    if seconds is None:
        return threads
    ahead = batch if seconds <= 0 else min(batch, int(min(prefetch_seconds / seconds, float(batch)) * threads))
    return max(threads, ahead)
