"""Broadcasting a version from rank 0 straight into the actors' engines, beside storing it.

A broadcast is best effort with a bounded cost. An actor that is not there, declines, dies or hangs is logged and
counted, and reads the version from the store. A failed broadcast never fails the publication; only a fenced learner or
a lost broker ends it.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Protocol, assert_never

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from broker.queue.state import Epoch
from broker.settings import WeightsSettings
from broker.weights import broadcast
from broker.weights.broadcast import (
    BroadcastCoordinator,
    Communicator,
    Layout,
    Outcome,
    Participant,
    ReceiverState,
    TransferBroken,
)

JOIN_SECONDS = 5.0
"""For answers to an invitation: a living actor looks for one ten times a second. One that misses it is invited again
once it shows itself."""
LOOK_SECONDS = 0.02
CAUSES = ("declined", "late", "dead", "silent", "broken", "differs")


class Link(Protocol):
    """The sending end, rank 0, of one communicator."""

    @property
    def rendezvous(self) -> dict[str, str | int]:
        """`Communicator.rendezvous`."""

    def open(self, group: str, world: int, seconds: float) -> None:
        """Wait for the other ranks to connect. Raises TransferBroken after `seconds`."""

    def send(self, layout: Layout, tensors: Mapping[str, torch.Tensor], seconds: float) -> str:
        """Send the tensors to all ranks; returns the digest that each must report. Raises TransferBroken."""

    def close(self) -> None:
        """Close the connections; calls that wait for this rank elsewhere end with an error."""


class BroadcastMetrics:
    """The learner's metrics of its broadcasts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.seconds = Histogram(
            "sieve_learner_transfer_seconds",
            "Broadcasts of a version, from invitation to last acknowledgement.",
            registry=registry,
            buckets=(0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
        )
        self.bytes = Counter("sieve_learner_transfer_bytes", "Bytes broadcast, counted once each.", registry=registry)
        self.members = Gauge(
            "sieve_learner_transfer_members", "Actors that got the newest version by broadcast.", registry=registry
        )
        self.groups = Counter("sieve_learner_transfer_groups", "Communicators built.", registry=registry)
        self.fallbacks = Counter(
            "sieve_learner_transfer_fallbacks",
            "Actors left to read a version from the store, by cause.",
            ["reason"],
            registry=registry,
        )
        for cause in CAUSES:
            self.fallbacks.labels(cause)


def layout_of(tensors: Mapping[str, torch.Tensor], pack_bytes: int) -> Layout:
    """The description of `tensors` that receivers need."""
    return Layout(
        tensors=tuple(
            broadcast.Tensor(
                name=name, dtype=str(one.dtype).removeprefix("torch."), shape=tuple(one.shape), itemsize=one.itemsize
            )
            for name, one in tensors.items()
        ),
        pack_bytes=pack_bytes,
    )


class Broadcaster:
    """The learner's side of broadcasts.

    Args:
        coordinator: the state of broadcasts in Redis.
        new_link: opens the sending end of a new communicator.
        seconds: limit for connecting, and again for sending.
        wait: the service's `wait(reason, seconds)`; True when the service is asked to stop.
    """

    def __init__(
        self,
        coordinator: BroadcastCoordinator,
        new_link: Callable[[], Link],
        seconds: float,
        metrics: BroadcastMetrics,
        log: logging.Logger,
        wait: Callable[[str, float], bool],
        *,
        pack_bytes: int = broadcast.PACK_BYTES,
        join_seconds: float = JOIN_SECONDS,
    ) -> None:
        self._coordinator, self._new_link, self._seconds = coordinator, new_link, seconds
        self._metrics, self._log, self._wait = metrics, log, wait
        self._pack_bytes, self._join_seconds = pack_bytes, join_seconds
        self._link: Link | None = None
        self._communicator: Communicator | None = None

    def send(self, epoch: Epoch, version: int, tensors: Mapping[str, torch.Tensor]) -> Outcome:
        """Offer `version` to every actor that can receive, and send it to those that join. Raises Fenced."""
        begin = time.monotonic()
        layout, id = layout_of(tensors, self._pack_bytes), uuid.uuid4().hex
        receivers = self._until(
            "broadcast: actors to answer",
            self._join_seconds,
            broadcast.unanswered,
            first=self._coordinator.invite(epoch, id, version, layout),
            look=lambda: self._coordinator.receivers(epoch, id, version),
        )
        members = broadcast.participants(receivers)
        if not members:
            self._coordinator.end(epoch, id, version)
            return self._record(version, broadcast.outcome(receivers, None, receivers, ""))
        digest = trouble = ""
        fresh = self._link is None or self._communicator is None or self._communicator.participants != members
        try:
            link, communicator = (self._link, self._communicator) if not fresh else self._new_communicator(members)
            assert link is not None and communicator is not None
            invited = self._coordinator.fix(epoch, id, version, communicator)
            try:
                if fresh:
                    link.open(communicator.id, communicator.world_size, self._seconds)
                    self._metrics.groups.inc()
                digest = link.send(layout, tensors, self._seconds)
                self._metrics.bytes.inc(layout.bytes)
            except TransferBroken as error:
                trouble = str(error)
                self.close()  # participants that still wait end at once
            receivers = self._until(
                "broadcast: acknowledgements",
                self._seconds,
                lambda now: broadcast.unacknowledged(communicator, now),
                first=self._coordinator.receivers(epoch, id, version),
                look=lambda: self._coordinator.receivers(epoch, id, version),
            )
        except BaseException:
            self.close()
            raise
        self._coordinator.end(epoch, id, version)
        found = broadcast.outcome(invited, communicator, receivers, digest)
        if trouble or any(communicator.participant(actor) for actor in found.missed):
            self.close()
        if not trouble:
            self._metrics.seconds.observe(time.monotonic() - begin)
        return self._record(version, found, trouble)

    def close(self) -> None:
        """Close the communicator; the next version builds another."""
        if self._link is not None:
            self._link.close()
        self._link = self._communicator = None

    def _new_communicator(self, members: tuple[Participant, ...]) -> tuple[Link, Communicator]:
        self.close()
        self._link = self._new_link()
        self._communicator = Communicator(
            id=uuid.uuid4().hex[:12], participants=members, rendezvous=self._link.rendezvous, seconds=self._seconds
        )
        return self._link, self._communicator

    def _until(
        self,
        reason: str,
        seconds: float,
        missing: Callable[[list[ReceiverState]], list[str]],
        *,
        first: list[ReceiverState],
        look: Callable[[], list[ReceiverState]],
    ) -> list[ReceiverState]:
        """The receivers once none is missing, or after `seconds`."""
        until, receivers = time.monotonic() + seconds, first
        while missing(receivers) and time.monotonic() < until:
            if self._wait(reason, LOOK_SECONDS):
                time.sleep(LOOK_SECONDS)  # asked to stop: the wait returns at once, the broadcast goes on
            receivers = look()
        return receivers

    def _record(self, version: int, found: Outcome, trouble: str = "") -> Outcome:
        self._metrics.members.set(len(found.received))
        for cause, _ in found.missed.values():
            self._metrics.fallbacks.labels(cause).inc()
        named = ", ".join(f"{actor} ({cause}: {why})" for actor, (cause, why) in found.missed.items())
        if trouble or any(cause != "declined" for cause, _ in found.missed.values()):
            failed = f" failed ({trouble})" if trouble else ""
            self._log.warning(
                "broadcast of version %d%s: not received by %s; they read the store", version, failed, named or "nobody"
            )
        return found


def open_broadcaster(
    settings: WeightsSettings,
    coordinator: BroadcastCoordinator,
    metrics: BroadcastMetrics,
    log: logging.Logger,
    wait: Callable[[str, float], bool],
    *,
    pack_bytes: int = broadcast.PACK_BYTES,
    join_seconds: float = JOIN_SECONDS,
) -> Broadcaster | None:
    """The broadcaster that `weights.broadcast` names; None for `none`. Arguments as for Broadcaster.

    Raises BroadcastUnavailable where this machine cannot send that way.
    """
    new_link: Callable[[], Link]
    match settings.broadcast:
        case "none":
            return None
        case "gloo":
            from learner.weights.gloo_link import GlooLink

            new_link = lambda: GlooLink(settings.broadcast_host)  # noqa: E731
        case "nccl":
            from learner.weights import nccl_link

            nccl_link.require()
            new_link = nccl_link.NcclLink
        case _:
            assert_never(settings.broadcast)
    return Broadcaster(
        coordinator,
        new_link,
        settings.broadcast_seconds,
        metrics,
        log,
        wait,
        pack_bytes=pack_bytes,
        join_seconds=join_seconds,
    )
