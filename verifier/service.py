"""The verifying service, which receives completions from the queues it serves, judges them and sends the verdicts.

    step = receive as much as there is room for → collect verdicts → send them in one call per queue

A keep-alive thread renews the claim on every completion held until the broker has acknowledged its verdict. A slow
verdict is therefore never mistaken for a dead service, and the work of a killed service goes to the others. The broker
retries `error` verdicts elsewhere. A completion whose verifier ended without a verdict may be what ended it: it is
judged alone, so that it ends nothing else, and after `verify_attempts` deliveries the broker dead-letters it. A queue
whose verdicts are all errors is read more and more slowly: an outage of a tool for a minute must not send a minute of
work to the dead letters, and a broken service must not take work faster than the working ones. On a stop, unfinished
work is requeued at once. How answers are judged is decided in protocol.py and by the verifiers.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from typing import ClassVar

from broker.errors import EX_TEMPORARY, BrokerFull, SieveError
from broker.queue.heartbeat import BEATS_PER_LEASE, Role
from broker.queue.state import Work
from broker.queue.verifier_client import VerifierClient
from broker.runtime.service import UNREACHABLE, Service
from broker.settings import Shared
from verifier.exposure import check_exposure
from verifier.metrics import VerifierMetrics
from verifier.pool import FIRST_PAUSE_SECONDS, Pool, Result, share
from verifier.protocol import VerifierError, make
from verifier.settings import QueueSettings, VerifierSettings
from verifier.verdict_cache import VerdictCache

IDLE_SECONDS = 0.4
"""How long an idle service blocks waiting for work, divided among its queues; bounds the reaction time to a stop."""
BUSY_SECONDS = 0.05
"""While completions are held, new work and overdue verdicts are looked for at least this often."""
LINGER_SECONDS = 0.004
"""How long to wait for more verdicts after the first one before sending, so that fast verdicts share a call."""
FINISHED_SECONDS = 0.5
"""How often an idle service asks the broker whether the run is finished."""


class VerifierConfig(Shared):
    """The part of the configuration that the verifying service reads."""

    verifier: VerifierSettings = VerifierSettings()


class VerifierStuck(SieveError):
    """Too many verdicts hang in this process; it must be replaced."""

    exit_code = EX_TEMPORARY


class VerifierService(Service[VerifierClient]):
    """Serves the queues `names` (default: all of `verifier.serve`) until the run is finished or it is told to stop."""

    role: ClassVar[Role] = "verifier"
    client = VerifierClient

    def __init__(
        self, config: VerifierConfig, *, index: int = 0, url: str | None = None, names: Sequence[str] = ()
    ) -> None:
        super().__init__(config, index=index, url=url)
        self._shared: Shared = config
        self._settings = config.verifier
        self._lease_seconds = config.broker.lease_seconds
        self._names = tuple(names) or tuple(config.verifier.serve)
        for name in self._names:
            if name not in config.verifier.serve:
                raise VerifierError(
                    f"no queue {name!r} in verifier.serve, which has {', '.join(config.verifier.serve)}; "
                    f"add verifier.serve.{name} or name one of these"
                )
        self.queues = self._names
        # A drain waits for verdicts under way and then calls the broker: both must fit before the forced end.
        self.grace_seconds = self._settings.drain_seconds + 20.0
        self._pools: list[Pool] = []
        self._caches: dict[str, VerdictCache] = {}
        self._done: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self._alone: tuple[Pool, str] | None = None
        """The last completion that was received to be judged alone, by its pool and entry."""
        self._failing: dict[str, str] = {}
        """Queues whose newest verdicts were all errors, with the reason of the last."""
        self._ended = threading.Event()
        self._keeper_failure: Exception | None = None
        self._asked_finished = 0.0
        self._metrics = VerifierMetrics(self.registry, lambda: {pool.name: len(pool.in_hand) for pool in self._pools})
        self.values.update(verdicts=0.0, passed=0.0)

    # --- life cycle

    def run(self) -> int:
        """Serve; returns the exit code (see Service.run)."""
        try:
            return super().run()
        finally:  # end the keep-alive in every case, so that what is still held is redelivered to other services
            self._ended.set()
            for pool in self._pools:
                pool.close()

    def setup(self) -> None:
        """Make the verifiers and start their threads and the keep-alive thread."""
        for name in self._names:
            settings = self._queue(name)
            verifier = make(name, settings.options, factory=settings.factory)
            check_exposure(verifier, self._shared)
            self._pools.append(Pool(verifier, settings.concurrency, settings.deadline_seconds, self._done))
            self._caches[name] = VerdictCache(verifier, settings, self._settings.cache_bytes)
            self._metrics.serving(verifier)
            self.log.info("serving %s/%s with %d threads", name, verifier.version, settings.concurrency)
        # On its own connection, because a blocking receive on a shared one would delay it.
        threading.Thread(target=self._keep, args=(self._connect(),), name="keep-alive", daemon=True).start()
        # Before anything is judged, the launcher must be able to see that the set-up has succeeded: what ends this
        # process from now on may be an answer.
        self.phase("idle")
        self.retrying(lambda: self.broker.heartbeat(self.heartbeat()))

    def step(self) -> None:
        """One turn of the loop; safe to repeat after an error, because completions received and verdicts given are kept
        until the broker has acknowledged them."""
        if self._keeper_failure is not None:
            raise self._keeper_failure
        self._receive()
        if self._busy():
            self.phase("judging")
            self._collect(BUSY_SECONDS)
            self._send()
            self._check_stuck()
        else:
            self.phase("idle")
            self._finish_if_run_over()
            pause = min(pool.backing_off() for pool in self._pools)
            if pause > 0:
                self.wait("errors of the verifier", min(pause, FINISHED_SECONDS))
            else:  # there is nothing to judge: what failed has been given up, or was judged elsewhere
                self._failing.clear()
                self.trouble()
        self.values["in_hand"] = float(sum(len(pool.in_hand) for pool in self._pools))

    def drain(self) -> None:
        """Requeue what has not begun, wait up to `drain_seconds` for verdicts under way, requeue the rest and leave."""
        for pool in self._pools:
            self._requeue(pool, pool.withdraw())
        deadline = time.monotonic() + self._settings.drain_seconds
        while any(pool.under_way for pool in self._pools) and time.monotonic() < deadline:
            self._collect(BUSY_SECONDS)
        self.retrying(self._send)
        for pool in self._pools:
            self._requeue(pool, list(pool.in_hand.values()))
            self.retrying(lambda name=pool.name: self.broker.leave(name, self.id))  # type: ignore[misc]

    # --- parts of a step

    def _receive(self) -> None:
        """Receive up to each queue's share; blocks only while nothing at all is held. Nothing is received next to a
        completion that is judged alone, or while what is held is finished to make room for one."""
        if self._alone is not None and self._alone[1] in self._alone[0].in_hand:
            return
        left_behind = [pool for pool in self._pools if self.broker.has_left_behind(pool.name)]
        if left_behind and self._busy():
            return
        for pool in left_behind or self._pools:
            settings = self._queue(pool.name)
            target = share(settings.concurrency, settings.batch, self._settings.prefetch_seconds, pool.seconds)
            # Refill when half is judged, not one by one: a fast verifier would pay a round trip for every completion.
            if pool.under_way > target // 2 and pool.under_way >= pool.threads:
                continue
            room = target - len(pool.in_hand)
            if room <= 0 or pool.backing_off() > 0:
                continue
            if self._busy():
                works = self.broker.receive(pool.name, self.id, room, 0.0, free=False)
            else:
                self.phase("idle")
                with self.waiting("verify queue"):
                    works = self.broker.receive(pool.name, self.id, room, IDLE_SECONDS / len(self._pools))
            self._metrics.received(pool.name, [work.entry for work in works])
            self._submit(pool, works)
            if works and works[0].alone:
                self._alone = (pool, works[0].entry)
                self.log.warning(
                    "%s %s/%s: an earlier verifier gave no verdict; attempt %d, alone",
                    *(pool.name, works[0].completion.group_id, works[0].completion.idx, works[0].attempt),
                )
                return

    def _submit(self, pool: Pool, works: list[Work]) -> None:
        """Give work to the threads, except what the verdict cache answers."""
        cache = self._caches[pool.name]
        if works and cache.worthwhile(pool.seconds):
            try:
                found = cache.look_up(self.broker, works)
            except UNREACHABLE as error:  # the work has been received: judge it without the cache
                self.log.warning("verdict cache: %s", error)
                found = {}
            self._metrics.looked_up(pool.name, len(found), len(works) - len(found))
            for work in works:
                if work.entry in found:
                    pool.accept_cached(work, found[work.entry])
        pool.submit(works)  # skips what is held already, cached verdicts included

    def _collect(self, seconds: float) -> None:
        """Take finished verdicts: wait up to `seconds` for the first, then LINGER_SECONDS for more."""
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
            errors = [verdict.reason for _, verdict in judged if verdict.outcome == "error"]
            pool.note_health(len(errors) == len(judged))
            outage = pool.backing_off() > FIRST_PAUSE_SECONDS  # not the first delivery of errors only
            self._note_trouble(pool.name, errors[-1] if outage else "")
            self._metrics.judged(pool.name, judged, replies)
            self.values["verdicts"] += len(judged)
            self.values["passed"] += sum(verdict.outcome == "pass" for _, verdict in judged)
            for (work, verdict), reply in zip(judged, replies, strict=True):
                if verdict.outcome == "error":
                    where = f"{pool.name} {work.completion.group_id}/{work.completion.idx}, attempt {work.attempt}"
                    self.log.warning("%s: error %s: %s (%s)", where, verdict.reason, verdict.detail[:300], reply)
            if self._caches[pool.name].worthwhile(pool.seconds):
                self._caches[pool.name].remember(self.broker, judged)

    def _note_trouble(self, name: str, reason: str) -> None:
        """Say which queues get nothing but errors, and the newest reason of each; `reason` is empty after a verdict."""
        self._failing.pop(name, None)
        if reason:
            self._failing[name] = reason
        detail = "; ".join(f"{name}: every verdict is an error, the last {why}" for name, why in self._failing.items())
        self.trouble("verifier_errors" if self._failing else "", detail)

    def _check_stuck(self) -> None:
        for pool in self._pools:
            if pool.left_behind > pool.threads:
                self.phase("draining")
                self.drain()
                raise VerifierStuck(
                    f"verifier {pool.name!r}: {pool.left_behind} verdicts hang beyond {pool.deadline_seconds:g} s in "
                    f"this process, limit {pool.threads}; restart it, and give the verifier a deadline of its own"
                )

    def _finish_if_run_over(self) -> None:
        now = time.monotonic()
        if now - self._asked_finished >= FINISHED_SECONDS:
            self._asked_finished = now
            if self.broker.finished():
                self.finish("the run is over")

    # --- completions held

    def _busy(self) -> bool:
        return any(pool.in_hand for pool in self._pools)

    def _requeue(self, pool: Pool, works: list[Work]) -> None:
        if works:
            self.retrying(lambda: self.broker.requeue(pool.name, works))
            pool.settled([work.entry for work in works])
            self.log.info("%s: requeued %d unfinished", pool.name, len(works))

    def _keep(self, broker: VerifierClient) -> None:
        """Renew the claim on everything held, several times within a lease; runs in its own thread."""
        try:
            while not self._ended.wait(self._lease_seconds / BEATS_PER_LEASE):
                for pool in self._pools:
                    entries = list(pool.in_hand)
                    if not entries:
                        continue
                    try:
                        broker.refresh(pool.name, self.id, entries)
                    except (*UNREACHABLE, BrokerFull) as error:
                        # The loop and the heartbeat meet the same outage and decide how long to tolerate it.
                        self.log.warning("keep-alive of %d completions: %s", len(entries), error)
        except Exception as error:
            self._keeper_failure = error
        finally:
            broker.close()

    def _queue(self, name: str) -> QueueSettings:
        return self._settings.serve[name]
