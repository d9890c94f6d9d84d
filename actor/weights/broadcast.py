"""An actor's part in broadcasts of new weights: answer invitations, take the seat, receive, acknowledge.

Bounded everywhere: whatever does not come in time, or comes broken, is acknowledged as such, and the files are read as
if there had been no broadcast. Driven from the service's loop; knows no engine, only what an engine can receive with.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from actor.metrics import BroadcastOutcome
from broker.weights.broadcast import JOIN, Group, Layout, Seat, TransferBroken, Transfers

LOOK_SECONDS = 0.1
"""How often to look for an invitation; the learner waits for answers a good while longer."""
FIXED_SECONDS = 30.0
"""After joining: a learner that has not fixed the members by then is gone."""


class Receiver(Protocol):
    """What an engine takes weights from a broadcast with."""

    @property
    def ranks(self) -> int:
        """Ranks of the group that the engine takes: its workers."""

    def join(self, group: Group, seat: Seat) -> None:
        """Meet the others. Raises TransferBroken within `group.seconds`."""

    def receive(self, version: int, layout: Layout, seconds: float) -> tuple[str, dict[str, float]]:
        """Sample with `version` from the next token on, once all of it is there (pause, load, stamp, resume).

        The digest of what arrived, and seconds by part: "receive", and those of `Engine.load`. Raises TransferBroken
        within about `seconds`, WeightsUnusable when what arrived does not fit: the engine is then still whole, or its
        `version` is None until it loads files."""

    def leave(self) -> None:
        """Give up the group; a call that waits in it on another side ends."""


@dataclass(frozen=True)
class Received:
    """A version that the engine samples with now."""

    version: int
    seconds: Mapping[str, float]


class Receiving:
    """`actor` is the service's id, as the broker knows it; `count` is told what came of each invitation."""

    def __init__(
        self,
        broker: Transfers,
        actor: str,
        receiver: Receiver,
        log: logging.Logger,
        count: Callable[[BroadcastOutcome], None],
    ) -> None:
        self._broker, self._actor, self._receiver, self._log, self._count = broker, actor, receiver, log, count
        self._looked = float("-inf")
        self._answered = ""
        self._joined: tuple[str, int, float] | None = None
        """(transfer, version, when to give it up)"""
        self._group = ""

    @property
    def joined(self) -> int | None:
        """The version that will be received: until then nothing may begin that forbids it."""
        return self._joined[1] if self._joined else None

    def step(self, unfit: str) -> Received | None:
        """Answer an invitation, or receive what was joined. `unfit`: why not to take new weights now; empty if fit.

        Raises WeightsUnusable when what arrived does not fit the model."""
        now = time.monotonic()
        if self._joined is None and now - self._looked < LOOK_SECONDS:
            return None
        self._looked = now
        id, version, state = self._broker.seen(self._actor, self._receiver.ranks)
        if self._joined is None:
            if state == "open" and id != self._answered:
                self._answer(id, version, unfit)
            return None
        joined, version, until = self._joined
        if state == "fixed" and id == joined:
            self._joined = None
            return self._take(joined, version)
        if id != joined or state == "over" or now > until:
            self._joined = None
            self._count("missed")
        return None

    def close(self) -> None:
        """Take part no more."""
        self._receiver.leave()
        self._broker.leave(self._actor)

    def _answer(self, id: str, version: int, unfit: str) -> None:
        self._answered = id
        if not self._broker.answer(self._actor, self._receiver.ranks, id, unfit or JOIN):
            self._count("missed")
        elif unfit:
            self._count("declined")
        else:
            self._joined = id, version, time.monotonic() + FIXED_SECONDS

    def _take(self, id: str, version: int) -> Received | None:
        found = self._broker.members(id)
        seat = found[0].seat(self._actor) if found else None
        if found is None or seat is None:
            self._count("missed")
            return None
        group, layout = found
        begin = time.monotonic()
        try:
            if group.id != self._group:
                self._group = ""
                self._receiver.join(group, seat)
                self._group = group.id
            met = time.monotonic()
            digest, seconds = self._receiver.receive(version, layout, group.seconds)
        except Exception as error:
            self._group = ""
            self._receiver.leave()
            self._count("broken")
            self._broker.acknowledge(self._actor, self._receiver.ranks, id, f"!{' '.join(str(error).split())}")
            if not isinstance(error, TransferBroken):
                raise
            self._log.warning("version %d was not received, its files will be read: %s", version, error)
            return None
        self._count("received")
        self._broker.acknowledge(self._actor, self._receiver.ranks, id, digest)
        return Received(version, {"join": met - begin, **seconds})
