"""The sampling service, which takes tickets, samples them with an engine and offers each completion when it ends.

    step()  =  load a newer version, broadcast or published → take tickets → submit those that may run → poll → offer

The version wanted is that of an eval ticket while eval tickets are held (evaluations are pinned to a version), else the
newest published. It is loaded, under running completions, as soon as none of them forbids it. While an evaluation wants
older weights, train tickets that these may not sample wait here, so that nothing prevents the change for ever.

Completions that cannot be offered (the broker is away or full) are kept and offered again: none is sampled twice, and
none is lost while this process lives. If it dies, its tickets are issued to others when its lease expires.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

from actor.engine import Engine, WeightsUnusable
from actor.engines.factory import open_engine, open_receiver, prepare
from actor.metrics import ActorMetrics
from actor.settings import ActorConfig
from actor.weights.broadcast import BroadcastListener
from actor.weights.canary import CanaryWatch
from actor.weights.fetching import WeightsFetcher
from broker.errors import BrokerUnavailable, SieveError, WeightsCorrupt, WeightsError
from broker.queue.actor_client import ActorClient
from broker.queue.heartbeat import Role
from broker.queue.state import RunSpec
from broker.queue.wire import Completion, Ticket
from broker.runtime.service import Service
from broker.weights.broadcast import BroadcastCoordinator
from broker.weights.canary import Canaries
from broker.weights.factory import open_fetch
from broker.weights.store import Fetched

LOOK_SECONDS = 0.1
"""Interval between looks for a newer version, and (half of it) for tickets after fewer came than there was room for."""
IDLE_SECONDS = 0.05
EXIT_SECONDS = 10.0
"""Time from the end of the drain to the forced end of the process."""


@dataclass
class _Held:
    ticket: Ticket
    missing: set[int]
    submitted: bool = False


class ActorService(Service[ActorClient]):
    """One actor process; `run` turns EngineError and BrokerError into exit codes."""

    role: ClassVar[Role] = "actor"
    client = ActorClient

    def __init__(self, config: ActorConfig, *, index: int = 0, url: str | None = None) -> None:
        super().__init__(config, index=index, url=url)
        self._settings = config.actor
        self._actor_config = config
        self.grace_seconds = config.actor.grace_seconds + EXIT_SECONDS
        self._metrics = ActorMetrics(self.registry)
        self._engine: Engine
        self._fetcher: WeightsFetcher
        self._canary: CanaryWatch
        self._listener: BroadcastListener | None = None
        self._held: dict[str, _Held] = {}
        self._unsent: list[Completion] = []
        self._newest = 0
        self._looked = self._asked = float("-inf")
        self._short = ""

    # ------------------------------------------------------------------ life cycle

    def setup(self) -> None:
        spec = self._wait_for_run()
        if spec is None:
            return
        self.phase("opening the model")
        self._engine = open_engine(self._actor_config, spec, self.id, self.index)
        for setting in self._settings.vllm.unsafe if self._settings.engine == "vllm" else ():
            self.log.warning("what is sampled may not be the policy: %s", setting)
        config = self._actor_config
        fetch = open_fetch(config.weights, config.run, spec.weights, self.broker.published)
        self._fetcher = WeightsFetcher(lambda version: self._checked(fetch(version)))
        self._canary = CanaryWatch(
            Canaries(self.broker),
            self._metrics,
            self.log,
            actor=self.id,
            engine=self._settings.engine,
            precision=self._actor_config.model.dtype,
        )
        receiver = open_receiver(self._actor_config, self._engine, self.log)
        if receiver is not None:
            self._listener = BroadcastListener(
                BroadcastCoordinator(self.broker),
                self.id,
                receiver,
                self.log,
                lambda outcome: self._metrics.transfers.labels(outcome).inc(),
            )
        self.phase("waiting for weights")

    def step(self) -> None:
        self._offer()
        self._receive()
        self._update()
        self._score_canary()
        self._take()
        self._submit()
        if self._engine.in_flight:
            self.phase("sampling")
            self._poll()
        elif self._held:
            failing = self._fetcher.failing
            self._idle("weights: a version that cannot be loaded" if failing else "weights", IDLE_SECONDS / 10)
        elif self._short == "run finished":
            self.finish("the run is finished")
        else:
            self._idle(self._short or "tickets")

    def drain(self) -> None:
        """Finish running completions within actor.grace_seconds; tickets not begun or not done by then are released."""
        if not hasattr(self, "_engine"):
            return
        until = time.monotonic() + self._settings.grace_seconds
        if self._listener is not None:
            self._listener.close()
        self._release([group_id for group_id, held in self._held.items() if not held.submitted])
        while (self._engine.in_flight or self._unsent) and time.monotonic() < until:
            self._poll()
        self._release(list(self._held))
        self._engine.close()
        self._fetcher.close()

    def _wait_for_run(self) -> RunSpec | None:
        self.phase("waiting for the run")
        prepare(self._actor_config.actor.engine)  # imports the engine, which takes seconds, while the learner starts
        while not self.stopping.is_set():
            spec = self.retrying(lambda: self.broker.run_spec(fresh=True))
            if spec is not None:
                return spec
            self.wait("learner: the run is not opened yet", 0.2)
        return None

    # ------------------------------------------------------------------ weights

    def _wanted(self) -> int:
        """The version the next tokens should come from."""
        evals = {held.ticket.version for held in self._held.values() if held.ticket.lane == "eval"}
        loaded = self._engine.version
        if loaded in evals:
            return loaded
        return min(evals, default=self._newest)

    def _receive(self) -> None:
        """Take part in a broadcast. Its version is sampled from at once, before the version pointer moves: it counts as
        used since its invitation, so no other weights will get its number."""
        if self._listener is None:
            return
        pinned = any(held.ticket.lane == "eval" for held in self._held.values())
        try:
            received = self._listener.step("an evaluation needs older weights" if pinned else "")
        except WeightsUnusable as error:
            self._metrics.failures.labels("unusable").inc()
            self.log.warning("a version was received and cannot be used; it will be read from the store: %s", error)
            return
        if received is not None:
            self._newest = max(self._newest, received.version)
            self._loaded(received.version, received.seconds)

    def _update(self) -> None:
        """Fetch the wanted version beside the sampling, and load it when no running completion forbids that."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._newest, self._looked = max(self._newest, self.broker.sampling_version()), now
        self.values.pop("fetching", None)
        if (reading := self._fetcher.in_progress) is not None:
            self.values["fetching"] = reading  # the learner reads this in the heartbeat and keeps the version
        wanted = self._wanted()
        # Before the first ticket there may be no version at all; with it, there is.
        if wanted == self._engine.version:
            self.trouble()
            return
        if self._engine.version is None and not self._held:
            return
        try:
            fetched = self._fetcher.get(wanted)
        except WeightsError as error:
            self._refused(wanted, "corrupt" if isinstance(error, WeightsCorrupt) else "missing", error)
            return
        except WeightsUnusable as error:
            self._refused(wanted, "unusable", error)
            return
        if fetched is not None:
            self._load(fetched, wanted)

    def _checked(self, fetched: Fetched) -> Fetched:
        """On the fetching thread: a version that cannot be loaded is known before sampling is paused for it."""
        with self._metrics.update.labels("check").time():
            self._engine.check(fetched.directory)
        return fetched

    def _load(self, fetched: Fetched, wanted: int) -> None:
        """Load what was fetched, unless something newer was loaded since or running completions forbid it."""
        version = fetched.version
        # A version on the way to the wanted one is welcome: a newer one, while nothing is pinned.
        if version != wanted and not (self._engine.version or 0) < version < wanted:
            self._fetcher.taken()
            return
        if self._engine.pinned(version):
            return
        try:
            seconds = self._engine.load(version, fetched.directory)
        except WeightsUnusable as error:
            self._fetcher.reject(version)
            self._refused(version, "unusable", error)
            return
        self._fetcher.taken()
        self._metrics.fetched(fetched)
        self._loaded(version, seconds)

    def _loaded(self, version: int, seconds: Mapping[str, float]) -> None:
        for part, spent in seconds.items():
            self._metrics.update.labels(part).observe(spent)
        self._metrics.version.set(version)
        self.values["version"] = version
        self.trouble()

    def _score_canary(self) -> None:
        """Score the canary of the loaded version and report it to the learner, which compares it with its own."""
        mismatch = self._canary.look(self._engine)
        if mismatch is not None:
            self.values["canary_mismatch"] = min(mismatch, 1e9)  # heartbeats carry finite numbers only

    def _refused(self, version: int, reason: str, error: SieveError) -> None:
        """A version that cannot be used is never sampled from; it is tried again, or a newer one takes its place."""
        self._metrics.failures.labels(reason).inc()
        self.trouble(f"weights_{reason}", f"version {version}: {error}")
        loaded = self._engine.version
        state = "nothing is sampled" if loaded is None else f"version {loaded} stays loaded"
        self.log.warning("version %d is %s, trying again; %s: %s", version, reason, state, error)
        # The evaluation may be over (its version deleted, its tickets void) or possible elsewhere: release its tickets.
        self._release(
            [
                group_id
                for group_id, held in self._held.items()
                if held.ticket.lane == "eval" and held.ticket.version == version and not held.submitted
            ]
        )

    # ------------------------------------------------------------------ tickets

    def _take(self) -> None:
        """Take tickets for a full batch and a quarter more, so that no free slot waits for a round trip."""
        now = time.monotonic()
        if self._short and now - self._asked < LOOK_SECONDS / 2:
            return
        missing = sum(len(held.missing) for held in self._held.values())
        room = self._settings.max_batch + self._settings.max_batch // 4 - missing
        if room <= 0 or (self._held and room < self._settings.max_batch // 16):
            return
        try:
            batch = self.broker.take(self.id, room)
        except BrokerUnavailable as error:
            # Tickets may have been issued and the reply lost: the broker counts them as ours while this process lives.
            raise BrokerUnavailable(
                f"{error}; this actor ends, so that tickets issued to it without its knowledge return when its lease "
                "expires",
                lasting=True,
            ) from None
        self._asked, self._short = now, batch.waiting_on
        self._newest = max(self._newest, batch.version)
        for ticket in batch.tickets:
            if ticket.group_id in self._held:  # requeued meanwhile and issued to this actor again
                self._drop([ticket.group_id], "stale")
            self._held[ticket.group_id] = _Held(ticket, set(ticket.missing))

    def _submit(self) -> None:
        """Submit every held ticket that both the loaded and the wanted version may sample."""
        loaded, wanted = self._engine.version, self._wanted()
        if loaded is None:
            return
        receiving = self._listener is not None and self._listener.joined is not None  # no ticket may forbid its load
        for held in self._held.values():
            ticket = held.ticket
            if held.submitted:
                continue
            if ticket.lane == "eval":
                fits = ticket.version == loaded == wanted and not receiving
            else:
                fits = ticket.version <= min(loaded, wanted)
            if fits:
                self._engine.submit(ticket, self.broker.prompt(ticket.lane, ticket.prompt))
                held.submitted = True

    def _drop(self, group_ids: Collection[str], reason: str) -> None:
        self._engine.cancel(group_ids)
        for group_id in group_ids:
            if self._held.pop(group_id, None) is not None:
                self._metrics.dropped.labels(reason).inc()

    def _release(self, group_ids: list[str]) -> None:
        if group_ids:
            self.broker.release(self.id, group_ids)
            self._drop(group_ids, "released")
            self._unsent = [completion for completion in self._unsent if completion.group_id not in group_ids]

    # ------------------------------------------------------------------ completions

    def _poll(self) -> None:
        done = self._engine.poll(self._settings.offer_seconds)
        self._unsent += done
        self._measure(done)
        self._offer()

    def _measure(self, done: list[Completion]) -> None:
        engine, metrics = self._engine, self._metrics
        metrics.sampled(engine.tokens, done)
        metrics.occupancy.set(engine.running / self._settings.max_batch)
        metrics.in_flight.set(engine.in_flight)
        oldest = engine.oldest_version()
        metrics.staleness.set(0 if oldest is None else max(0, self._newest - oldest))
        self.values["tokens_per_second"] = metrics.tokens_per_second
        self.values["in_flight"] = engine.in_flight

    def _offer(self) -> None:
        if not self._unsent:
            return
        answers = self.broker.offer(self.id, self._unsent)
        sent, self._unsent = self._unsent, []
        stale: set[str] = set()
        for completion, answer in zip(sent, answers, strict=True):
            held = self._held.get(completion.group_id)
            if answer == "stale":
                stale.add(completion.group_id)
            elif held is not None:
                held.missing.discard(completion.idx)
                if not held.missing:
                    del self._held[completion.group_id]
        if stale:
            self._drop(stale, "stale")

    def _idle(self, reason: str, seconds: float = IDLE_SECONDS) -> None:
        self.phase("waiting")
        self._measure([])
        self.wait(reason, seconds)
