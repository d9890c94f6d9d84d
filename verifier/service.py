"""The verifying service: receive completions from the queues it serves, judge them, send the verdicts.

    step = receive what there is room for → collect verdicts → send them in one call per queue

Everything in hand is kept alive by a thread of its own until the broker has acknowledged its verdict, so a slow
verdict is never taken for a dead service, and a killed service's work goes to the others. `error` verdicts are retried
elsewhere by the broker, and a queue whose verdicts are all errors is read more and more slowly: a tool that is away
for a minute must not dead-letter a minute of work, nor a broken service outrun the sound ones. A stop puts unfinished
work back at once. Decides nothing about answers itself (verdicts.py).
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from typing import ClassVar

from broker.errors import EX_TEMPORARY, BrokerFull, SieveError
from broker.queue.client import Broker
from broker.queue.heartbeat import Role
from broker.queue.state import Work
from broker.runtime.service import UNREACHABLE, Service
from broker.settings import Shared
from verifier.metrics import VerifierMetrics
from verifier.pool import Pool, Result, share
from verifier.protocol import VerifierError, make
from verifier.settings import QueueSettings, VerifierSettings
from verifier.verdict_cache import KnownVerdicts

IDLE_SECONDS = 0.4
"""A receive with nothing in hand blocks this long, shared among the queues served: bounds the answer to a stop."""
BUSY_SECONDS = 0.05
"""With work in hand the loop looks for new work and overdue verdicts at least this often."""
LINGER_SECONDS = 0.004
"""After the first verdict: how long to wait for more before sending, so that fast verdicts travel together."""
FINISHED_SECONDS = 0.5
"""How often an idle service asks whether the run is over."""


class VerifierConfig(Shared):
    """What this room reads of the configuration."""

    verifier: VerifierSettings = VerifierSettings()


class VerifierStuck(SieveError):
    """So many verdicts hang that this process should be replaced."""

    exit_code = EX_TEMPORARY


class VerifierService(Service):
    """Serves the queues `names` (default: all of `verifier.serve`) until the run is finished or it is told to stop."""

    role: ClassVar[Role] = "verifier"

    def __init__(
        self, config: VerifierConfig, *, index: int = 0, url: str | None = None, names: Sequence[str] = ()
    ) -> None:
        super().__init__(config, index=index, url=url)
        self._settings = config.verifier
        self._lease_seconds = config.broker.lease_seconds
        self._names = tuple(names) or tuple(config.verifier.serve)
        for name in self._names:
            if name not in config.verifier.serve:
                raise VerifierError(
                    f"no queue {name!r} in verifier.serve, which has {', '.join(config.verifier.serve)}; "
                    f"add verifier.serve.{name} or name one of these"
                )
        # Drain waits for verdicts under way, then talks to the broker: both must fit before the forced end.
        self.grace_seconds = self._settings.drain_seconds + 20.0
        self._pools: list[Pool] = []
        self._known: dict[str, KnownVerdicts] = {}
        self._done: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._keeper_failure: Exception | None = None
        self._asked_finished = 0.0
        self._seen = VerifierMetrics(self.registry, lambda: {pool.name: len(pool.in_hand) for pool in self._pools})
        self.values.update(verdicts=0.0, passed=0.0)

    # --- the service's life

    def run(self) -> int:
        """Serve; returns the exit code (see Service.run)."""
        try:
            return super().run()
        finally:  # however it ended: what is still held must return to the others by its lease
            self._ended.set()
            for pool in self._pools:
                pool.close()

    def setup(self) -> None:
        """Make the verifiers, start their threads and the keep-alive."""
        for name in self._names:
            settings = self._queue(name)
            verifier = make(name, settings.options, factory=settings.factory)
            self._pools.append(Pool(verifier, settings.concurrency, settings.deadline_seconds, self._done))
            self._known[name] = KnownVerdicts(verifier, settings, self._settings.cache_bytes)
            self._seen.serving(verifier)
            self.log.info("serving %s/%s with %d threads", name, verifier.version, settings.concurrency)
        # On its own connection: a blocking receive must not hold it back.
        threading.Thread(target=self._keep, args=(self._connect(),), name="keep", daemon=True).start()

    def step(self) -> None:
        """Safe to repeat: what was received is in hand, what was judged is kept until the broker has it."""
        if self._keeper_failure is not None:
            raise self._keeper_failure
        self._receive()
        if self._busy():
            self.phase("judging")
            self._collect(BUSY_SECONDS)
            self._send()
            self._end_if_stuck()
        else:
            self.phase("idle")
            self._finish_if_over()
            pause = min(pool.backing_off() for pool in self._pools)
            if pause > 0:
                self.wait("errors of the verifier", min(pause, FINISHED_SECONDS))
        self.values["in_hand"] = float(sum(len(pool.in_hand) for pool in self._pools))

    def drain(self) -> None:
        """Put back what has not begun, give what is under way `drain_seconds`, then put back the rest and leave."""
        for pool in self._pools:
            self._put_back(pool, pool.withdraw())
        deadline = time.monotonic() + self._settings.drain_seconds
        while any(pool.under_way for pool in self._pools) and time.monotonic() < deadline:
            self._collect(BUSY_SECONDS)
        self.retrying(self._send)
        for pool in self._pools:
            self._put_back(pool, list(pool.in_hand.values()))
            self.retrying(lambda name=pool.name: self.broker.leave(name, self.id))  # type: ignore[misc]

    # --- one turn

    def _receive(self) -> None:
        """Fill up to each queue's share; blocks only when nothing at all is in hand."""
        for pool in self._pools:
            settings = self._queue(pool.name)
            target = share(settings.concurrency, settings.batch, self._settings.prefetch_seconds, pool.seconds)
            # Refill when half is gone, not one by one: a fast verifier would pay a round trip for every completion.
            if pool.under_way > target // 2 and pool.under_way >= pool.threads:
                continue
            room = target - len(pool.in_hand)
            if room <= 0 or pool.backing_off() > 0:
                continue
            if self._busy():
                works = self.broker.receive(pool.name, self.id, room, 0.0)
            else:
                with self.waiting("verify queue"):
                    works = self.broker.receive(pool.name, self.id, room, IDLE_SECONDS / len(self._pools))
            self._seen.received(pool.name, [work.entry for work in works])
            self._submit(pool, works)

    def _submit(self, pool: Pool, works: list[Work]) -> None:
        """To the threads, except what the verdict cache knows."""
        known = self._known[pool.name]
        if works and known.worthwhile(pool.seconds):
            try:
                found = known.look_up(self.broker, works)
            except UNREACHABLE as error:  # the work is ours already: judge it, whatever became of the cache
                self.log.warning("verdict cache: %s", error)
                found = {}
            self._seen.looked_up(pool.name, len(found), len(works) - len(found))
            for work in works:
                if work.entry in found:
                    pool.known(work, found[work.entry])
        pool.submit(works)  # takes only what is not in hand

    def _collect(self, seconds: float) -> None:
        """Take finished verdicts: wait up to `seconds` for the first, then LINGER_SECONDS for company."""
        until = time.monotonic() + seconds
        first = True
        while any(pool.under_way for pool in self._pools):
            try:
                result = self._done.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            result.pool.accept(result.work, result.verdict)
            if first:
                until, first = time.monotonic() + LINGER_SECONDS, False
        for pool in self._pools:
            pool.give_up_overdue()

    def _send(self) -> None:
        for pool in self._pools:
            if not pool.judged:
                continue
            judged = list(pool.judged.values())
            replies = self.broker.judge(pool.name, self.id, judged)
            pool.settled([work.entry for work, _ in judged])
            pool.note_health(all(verdict.outcome == "error" for _, verdict in judged))
            self._seen.judged(pool.name, judged, replies)
            self.values["verdicts"] += len(judged)
            self.values["passed"] += sum(verdict.outcome == "pass" for _, verdict in judged)
            for (work, verdict), reply in zip(judged, replies, strict=True):
                if verdict.outcome == "error":
                    where = f"{pool.name} {work.completion.group_id}/{work.completion.idx}, attempt {work.attempt}"
                    self.log.warning("%s: error %s: %s (%s)", where, verdict.reason, verdict.detail[:300], reply)
            if self._known[pool.name].worthwhile(pool.seconds):
                self._known[pool.name].remember(self.broker, judged)

    def _end_if_stuck(self) -> None:
        for pool in self._pools:
            if pool.left_behind > pool.threads:
                self.phase("draining")
                self.drain()
                raise VerifierStuck(
                    f"verifier {pool.name!r}: {pool.left_behind} verdicts hang beyond {pool.deadline_seconds:g} s in "
                    f"this process, limit {pool.threads}; start it again, and give the verifier a deadline of its own"
                )

    def _finish_if_over(self) -> None:
        now = time.monotonic()
        if now - self._asked_finished >= FINISHED_SECONDS:
            self._asked_finished = now
            if self.broker.finished():
                self.finish("the run is over")

    # --- what is in hand

    def _busy(self) -> bool:
        return any(pool.in_hand for pool in self._pools)

    def _put_back(self, pool: Pool, works: list[Work]) -> None:
        if works:
            self.retrying(lambda: self.broker.requeue(pool.name, self.id, works))
            pool.settled([work.entry for work in works])
            self.log.info("%s: put back %d unfinished", pool.name, len(works))

    def _keep(self, broker: Broker) -> None:
        """Thread: tell the broker what is still being worked on, several times within a lease."""
        try:
            while not self._ended.wait(self._lease_seconds / 4):
                for pool in self._pools:
                    entries = list(pool.in_hand)
                    if not entries:
                        continue
                    try:
                        broker.keep(pool.name, self.id, entries)
                    except (*UNREACHABLE, BrokerFull) as error:
                        # The loop and the heartbeat meet the same outage and decide how long to bear it.
                        self.log.warning("keep-alive of %d in hand: %s", len(entries), error)
        except Exception as error:
            self._keeper_failure = error
        finally:
            broker.close()

    def _queue(self, name: str) -> QueueSettings:
        return self._settings.serve[name]
