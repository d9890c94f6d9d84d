"""Sending a version from rank 0 straight into the actors' engines, beside the writing of its files.

Best effort with a bounded cost: whoever is not there, declines, dies or hangs is named in the log and counted, and
reads the files. Nothing here can fail a publication; only a fenced learner or a lost broker ends it.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from broker.queue.state import Epoch
from broker.settings import WeightsSettings
from broker.weights import broadcast as transfers
from broker.weights.broadcast import Entry, Group, Layout, Outcome, TransferBroken, Transfers

JOIN_SECONDS = 5.0
"""For answers: a loop that is alive looks ten times a second. Who misses it is asked again once it shows itself."""
LOOK_SECONDS = 0.02
CAUSES = ("declined", "late", "dead", "silent", "broken", "differs")


class Link(Protocol):
    """A group of ranks, this one 0."""

    @property
    def meeting(self) -> dict[str, str | int]: ...
    def open(self, group: str, world: int, seconds: float) -> None: ...
    def send(self, layout: Layout, tensors: Mapping[str, torch.Tensor], seconds: float) -> str: ...
    def close(self) -> None: ...


def link_maker(settings: WeightsSettings) -> Callable[[], Link]:
    """What opens a group over weights.transport. Raises TransportUnavailable."""
    if settings.transport == "nccl":
        from learner.weights import nccl_link

        nccl_link.require()
        return nccl_link.NcclLink
    from learner.weights.gloo_link import GlooLink

    return lambda: GlooLink(settings.host)


class TransferMetrics:
    """What the learner says of its broadcasts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.seconds = Histogram(
            "sieve_learner_transfer_seconds", "Broadcasts of a version, from invitation to last acknowledgement.",
            registry=registry, buckets=(0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
        )  # fmt: skip
        self.bytes = Counter("sieve_learner_transfer_bytes", "Bytes broadcast, counted once each.", registry=registry)
        self.members = Gauge(
            "sieve_learner_transfer_members", "Actors that got the newest version by broadcast.", registry=registry
        )
        self.groups = Counter("sieve_learner_transfer_groups", "Communicators built.", registry=registry)
        self.fallbacks = Counter(
            "sieve_learner_transfer_fallbacks", "Actors left to read a version's files, by cause.", ["reason"],
            registry=registry,
        )  # fmt: skip
        for cause in CAUSES:
            self.fallbacks.labels(cause)


def layout_of(tensors: Mapping[str, torch.Tensor], pack_bytes: int) -> Layout:
    """How `tensors` are sent."""
    return Layout(
        tensors=tuple(
            transfers.Tensor(
                name=name, dtype=str(one.dtype).removeprefix("torch."), shape=tuple(one.shape), itemsize=one.itemsize
            )
            for name, one in tensors.items()
        ),
        pack_bytes=pack_bytes,
    )


class Broadcast:
    """`link` makes a new one; `wait(reason, seconds)` is the service's, True when it is asked to stop."""

    def __init__(
        self,
        broker: Transfers,
        link: Callable[[], Link],
        settings: WeightsSettings,
        metrics: TransferMetrics,
        log: logging.Logger,
        wait: Callable[[str, float], bool],
        *,
        pack_bytes: int = transfers.PACK_BYTES,
        join_seconds: float = JOIN_SECONDS,
    ) -> None:
        self._broker, self._new_link, self._seconds = broker, link, settings.transfer_seconds
        self._metrics, self._log, self._wait = metrics, log, wait
        self._pack_bytes, self._join_seconds = pack_bytes, join_seconds
        self._link: Link | None = None
        self._group: Group | None = None

    def send(self, epoch: Epoch, version: int, tensors: Mapping[str, torch.Tensor]) -> Outcome:
        """Offer `version` to every actor that can receive, and send it to those who join."""
        begin = time.monotonic()
        layout, id = layout_of(tensors, self._pack_bytes), uuid.uuid4().hex
        entries = self._until(
            "transfer: actors to answer", self._join_seconds, transfers.awaited,
            first=self._broker.open(epoch, id, version, layout),
            look=lambda: self._broker.look(epoch, id, version),
        )  # fmt: skip
        seats = transfers.seats(entries)
        if not seats:
            self._broker.over(epoch, id, version)
            return self._note(version, transfers.outcome(entries, None, entries, ""))
        digest = trouble = ""
        fresh = self._link is None or self._group is None or self._group.seats != seats
        try:
            link, group = (self._link, self._group) if not fresh else self._meet(seats)
            assert link is not None and group is not None
            invited = self._broker.fix(epoch, id, version, group)
            try:
                if fresh:
                    link.open(group.id, group.world, self._seconds)
                    self._metrics.groups.inc()
                digest = link.send(layout, tensors, self._seconds)
                self._metrics.bytes.inc(layout.bytes)
            except TransferBroken as error:
                trouble = str(error)
                self.close()  # members that still wait end at once
            entries = self._until(
                "transfer: acknowledgements", self._seconds, lambda now: transfers.unacknowledged(group, now),
                first=self._broker.look(epoch, id, version),
                look=lambda: self._broker.look(epoch, id, version),
            )  # fmt: skip
        except BaseException:
            self.close()
            raise
        self._broker.over(epoch, id, version)
        found = transfers.outcome(invited, group, entries, digest)
        if trouble or any(group.seat(actor) for actor in found.missed):
            self.close()
        if not trouble:
            self._metrics.seconds.observe(time.monotonic() - begin)
        return self._note(version, found, trouble)

    def close(self) -> None:
        """End the group; the next version builds another."""
        if self._link is not None:
            self._link.close()
        self._link = self._group = None

    def _meet(self, seats: tuple[transfers.Seat, ...]) -> tuple[Link, Group]:
        self.close()
        self._link = self._new_link()
        self._group = Group(id=uuid.uuid4().hex[:12], seats=seats, meeting=self._link.meeting, seconds=self._seconds)
        return self._link, self._group

    def _until(
        self,
        reason: str,
        seconds: float,
        missing: Callable[[list[Entry]], list[str]],
        *,
        first: list[Entry],
        look: Callable[[], list[Entry]],
    ) -> list[Entry]:
        """The actors' state once nobody is missing, or after `seconds`."""
        until, entries = time.monotonic() + seconds, first
        while missing(entries) and time.monotonic() < until:
            if self._wait(reason, LOOK_SECONDS):
                time.sleep(LOOK_SECONDS)  # asked to stop: the wait is over at once, the transfer is not
            entries = look()
        return entries

    def _note(self, version: int, found: Outcome, trouble: str = "") -> Outcome:
        self._metrics.members.set(len(found.received))
        for cause, _ in found.missed.values():
            self._metrics.fallbacks.labels(cause).inc()
        named = ", ".join(f"{actor} ({cause}: {why})" for actor, (cause, why) in found.missed.items())
        if trouble or any(cause != "declined" for cause, _ in found.missed.values()):
            self._log.warning(
                "broadcast of version %d%s: not received by %s; they read the files", version,
                f" failed ({trouble})" if trouble else "", named or "nobody",
            )  # fmt: skip
        return found
