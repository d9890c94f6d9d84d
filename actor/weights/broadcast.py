"""An actor's side of broadcasts of new weights: answer the invitation, join, receive, acknowledge.

Every wait is bounded. A version that does not arrive in time or whole is acknowledged as such, and is then read from
the store as without broadcasts. Driven by the service's loop; knows engines only through `Receiver`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from actor.metrics import BroadcastOutcome
from broker.weights.broadcast import JOIN, BroadcastCoordinator, Communicator, Layout, Participant, TransferBroken

LOOK_SECONDS = 0.1
"""Between two looks for an invitation; the learner waits for answers much longer."""
FIXED_SECONDS = 30.0
"""Limit, after joining, for the learner to fix the participants: after it the learner is taken for dead."""


class Receiver(Protocol):
    """An engine's receiving end of broadcasts."""

    @property
    def ranks(self) -> int:
        """Number of ranks that the engine takes in the communicator: one for each of its workers."""

    def join(self, communicator: Communicator, own: Participant) -> None:
        """Connect to the other ranks, as the participant `own`. Raises TransferBroken within `communicator.seconds`."""

    def receive(self, version: int, layout: Layout, seconds: float) -> tuple[str, dict[str, float]]:
        """Receive all of `version`, then load it: tokens are sampled with it from the next one on.

        Returns the digest of what arrived, and seconds by part: "receive", and those of `Engine.load`. Raises
        TransferBroken within about `seconds`, and WeightsUnusable when what arrived does not fit the model. After an
        error the engine still has its weights before, or its `version` is None until it loads files.
        """

    def leave(self) -> None:
        """Leave the communicator; calls of other ranks that wait in it end with an error."""


@dataclass(frozen=True)
class Received:
    """A version that was received and loaded, and the seconds that took by part."""

    version: int
    seconds: Mapping[str, float]


class BroadcastListener:
    """Answers invitations to broadcasts and receives what was joined.

    Args:
        coordinator: the state of broadcasts in Redis.
        actor: the service's id.
        receiver: the engine's receiving end.
        count: called with the outcome of each invitation.
    """

    def __init__(
        self,
        coordinator: BroadcastCoordinator,
        actor: str,
        receiver: Receiver,
        log: logging.Logger,
        count: Callable[[BroadcastOutcome], None],
    ) -> None:
        self._coordinator, self._actor, self._receiver = coordinator, actor, receiver
        self._log, self._count = log, count
        self._looked = float("-inf")
        self._answered = ""
        self._joined: tuple[str, int, float] | None = None
        """(broadcast id, version, time at which to give it up)"""
        self._communicator = ""

    @property
    def joined(self) -> int | None:
        """The version that has been joined and not received yet; no evaluation that pins other weights may begin."""
        return self._joined[1] if self._joined else None

    def step(self, unfit: str) -> Received | None:
        """Answer an invitation, or receive the version that was joined.

        `unfit`: the reason why the engine cannot take new weights now, or empty. Raises WeightsUnusable when what
        arrived does not fit the model.
        """
        now = time.monotonic()
        if self._joined is None and now - self._looked < LOOK_SECONDS:
            return None
        self._looked = now
        id, version, state = self._coordinator.current(self._actor, self._receiver.ranks)
        if self._joined is None:
            if state == "open" and id != self._answered:
                self._answer(id, version, unfit)
            return None
        joined, version, until = self._joined
        if state == "fixed" and id == joined:
            self._joined = None
            return self._receive(joined, version)
        if id != joined or state == "over" or now > until:
            self._joined = None
            self._count("missed")
        return None

    def close(self) -> None:
        """Leave the communicator and take part in no more broadcasts."""
        self._receiver.leave()
        self._coordinator.leave(self._actor)

    def _answer(self, id: str, version: int, unfit: str) -> None:
        self._answered = id
        if not self._coordinator.answer(self._actor, self._receiver.ranks, id, unfit or JOIN):
            self._count("missed")
        elif unfit:
            self._count("declined")
        else:
            self._joined = id, version, time.monotonic() + FIXED_SECONDS

    def _receive(self, id: str, version: int) -> Received | None:
        found = self._coordinator.communicator(id)
        own = found[0].participant(self._actor) if found else None
        if found is None or own is None:
            self._count("missed")
            return None
        communicator, layout = found
        begin = time.monotonic()
        try:
            if communicator.id != self._communicator:
                self._communicator = ""
                self._receiver.join(communicator, own)
                self._communicator = communicator.id
            joined = time.monotonic()
            digest, seconds = self._receiver.receive(version, layout, communicator.seconds)
        except Exception as error:
            self._communicator = ""
            self._receiver.leave()
            self._count("broken")
            self._coordinator.acknowledge(self._actor, self._receiver.ranks, id, f"!{' '.join(str(error).split())}")
            if not isinstance(error, TransferBroken):
                raise
            self._log.warning("version %d was not received and will be read from the store: %s", version, error)
            return None
        self._count("received")
        self._coordinator.acknowledge(self._actor, self._receiver.ranks, id, digest)
        return Received(version, {"join": joined - begin, **seconds})
