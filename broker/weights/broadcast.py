"""Coordination of a broadcast through Redis: who takes part, and what is sent. No tensors here.

    learner: invite ──▶ actors: join | decline ──▶ learner: fix (participants, rendezvous) ──▶ all meet, tensors flow
             end    ◀── acknowledgements: the digest of what arrived, or why nothing did

There is one broadcast at a time, in a few keys under the run's prefix: `transfer` (hash: id, version, state, layout,
communicator), `receivers` (actor → ranks it would bring), `answers`, `acks`. The learner fixes the participants, so
both sides always agree on who they are; an actor that is not among them, or fails to receive, reads the version from
the store.

A version counts as used from its invitation on (`offered` in the run's state). Actors may sample with it as soon as all
of it has arrived, before the version pointer moves, and a learner that is restarted in between publishes its weights
under a higher number. So a version number never stands for two sets of weights.

The communicator is reused from version to version. It is rebuilt when its participants change and after any failure.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker.errors import EX_TEMPORARY, SieveError
from broker.queue.connection import RunConnection
from broker.queue.state import Epoch
from broker.queue.wire import WireError

LAYOUT_BYTES = 32 << 20
"""Largest description of a model's tensors that is read: hundreds of thousands of them."""
PACK_BYTES = 64 << 20
"""Tensors sent in one message: large enough for the network's full speed, small beside a model."""
ALIGN = 16
"""Alignment of a tensor in a pack, bytes: any dtype can then be read in place."""
JOIN = "join"

State = Literal["open", "fixed", "over"]
Cause = Literal["declined", "late", "dead", "silent", "broken", "differs"]
"""Why an actor did not get a version by broadcast. `late`: no answer in time; `dead`: no heartbeat; `silent`: alive, no
acknowledgement in time; `broken`: it gave up receiving; `differs`: what arrived is not what was sent."""


class TransferBroken(SieveError):
    """A broadcast ended early: a peer died, hung or sent something else. Nothing of it is sampled from."""

    exit_code = EX_TEMPORARY


class Tensor(BaseModel):
    """Name, dtype and shape of one tensor that is sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=1000)]
    dtype: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,32}$")]
    """torch's name: float32, bfloat16, …"""
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    itemsize: Annotated[int, Field(ge=1, le=16)]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.itemsize


class Layout(BaseModel):
    """The tensors of a broadcast, in the order in which they are sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensors: Annotated[tuple[Tensor, ...], Field(min_length=1)]
    pack_bytes: Annotated[int, Field(ge=1)] = PACK_BYTES

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class Participant(BaseModel):
    """An actor and its ranks, `first_rank` to `first_rank + ranks − 1`. The learner has rank 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    actor: str
    ranks: Annotated[int, Field(ge=1)]
    first_rank: Annotated[int, Field(ge=1)]


class Communicator(BaseModel):
    """The participants of a broadcast and where they meet."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    """Equal to that of the broadcast before when its connections are reused."""
    participants: Annotated[tuple[Participant, ...], Field(min_length=1)]
    rendezvous: dict[str, str | int]
    """`gloo`: `address` and `port` of the learner's TCP store. `nccl`: the unique id."""
    seconds: Annotated[float, Field(gt=0)]
    """Limit for connecting, and again for sending."""

    @property
    def world_size(self) -> int:
        """Number of ranks, the learner's included."""
        return 1 + sum(one.ranks for one in self.participants)

    def participant(self, actor: str) -> Participant | None:
        return next((one for one in self.participants if one.actor == actor), None)


@dataclass(frozen=True)
class ReceiverState:
    """What Redis holds about one actor that can receive broadcasts."""

    actor: str
    ranks: int
    alive: bool
    answer: str
    """`join`, the reason to decline, or empty."""
    ack: str
    """Digest of what arrived; `!` and the reason when nothing did; or empty."""


@dataclass(frozen=True)
class Outcome:
    """Result of a broadcast: which actors have the version, and why the others do not."""

    received: tuple[str, ...]
    missed: Mapping[str, tuple[Cause, str]]


def participants(receivers: Iterable[ReceiverState]) -> tuple[Participant, ...]:
    """Ranks for all living actors that join, in the order of their ids: the same actors always get the same ranks."""
    found: list[Participant] = []
    rank = 1
    for one in sorted(receivers, key=lambda one: one.actor):
        if one.alive and one.answer == JOIN:
            found.append(Participant(actor=one.actor, ranks=one.ranks, first_rank=rank))
            rank += one.ranks
    return tuple(found)


def unanswered(receivers: Iterable[ReceiverState]) -> list[str]:
    """Living actors that have not answered the invitation."""
    return [one.actor for one in receivers if one.alive and not one.answer]


def unacknowledged(communicator: Communicator, receivers: Iterable[ReceiverState]) -> list[str]:
    """Living participants that have not acknowledged."""
    state = {one.actor: one for one in receivers}
    found = [state.get(one.actor) for one in communicator.participants]
    return [one.actor for one in found if one is not None and one.alive and not one.ack]


def outcome(
    invited: Sequence[ReceiverState], communicator: Communicator | None, now: Sequence[ReceiverState], digest: str
) -> Outcome:
    """Which actors have the version.

    Args:
        invited: the receivers when the participants were fixed.
        communicator: the participants; None when nobody joined.
        now: the receivers at the end.
        digest: that of what was sent.
    """
    state = {one.actor: one for one in now}
    received: list[str] = []
    missed: dict[str, tuple[Cause, str]] = {}
    for before in sorted(invited, key=lambda one: one.actor):
        after = state.get(before.actor)
        if communicator is None or communicator.participant(before.actor) is None:
            if not before.alive:
                missed[before.actor] = "dead", "no heartbeat"
            elif before.answer and before.answer != JOIN:
                missed[before.actor] = "declined", before.answer
            else:
                missed[before.actor] = "late", "no answer in time"
        elif after is not None and after.ack:
            if after.ack.startswith("!"):
                missed[before.actor] = "broken", after.ack[1:]
            elif after.ack != digest:
                missed[before.actor] = "differs", f"{after.ack[:16]}… arrived, {digest[:16]}… was sent"
            else:
                received.append(before.actor)
        elif after is None or not after.alive:
            missed[before.actor] = "dead", "no heartbeat and no acknowledgement"
        else:
            missed[before.actor] = "silent", "no acknowledgement in time"
    return Outcome(tuple(received), missed)


def packs(layout: Layout) -> list[list[tuple[Tensor, int]]]:
    """The tensors in order, in packs of at most `pack_bytes` (or one tensor), each with its offset in its pack."""
    found: list[list[tuple[Tensor, int]]] = []
    end = layout.pack_bytes + 1
    for tensor in layout.tensors:
        start = -(-end // ALIGN) * ALIGN
        if start + tensor.bytes > layout.pack_bytes:
            found.append([])
            start = 0
        found[-1].append((tensor, start))
        end = start + tensor.bytes
    return found


def length(pack: Sequence[tuple[Tensor, int]]) -> int:
    """Bytes of a pack's buffer."""
    last, start = pack[-1]
    return start + last.bytes


class BroadcastCoordinator:
    """The state of the run's broadcasts in Redis; every method is safe to repeat."""

    def __init__(self, broker: RunConnection) -> None:
        self._broker = broker

    # --- the learner

    def invite(self, epoch: Epoch, id: str, version: int, layout: Layout) -> list[ReceiverState]:
        """Invite every receiver to `version`, which counts as used from now on; the receivers. Raises Fenced."""
        return self._write(epoch, id, version, state="open", layout=layout.model_dump_json())

    def fix(self, epoch: Epoch, id: str, version: int, communicator: Communicator) -> list[ReceiverState]:
        """Fix the participants: nobody can join any more. Returns the receivers. Raises Fenced."""
        return self._write(epoch, id, version, communicator=communicator.model_dump_json(), state="fixed")

    def end(self, epoch: Epoch, id: str, version: int) -> list[ReceiverState]:
        """End the broadcast: actors that have not received the version read it from the store. Raises Fenced."""
        return self._write(epoch, id, version, state="over")

    def receivers(self, epoch: Epoch, id: str, version: int) -> list[ReceiverState]:
        """The actors that can receive, as they stand. Raises Fenced."""
        return self._write(epoch, id, version)

    def _write(self, epoch: Epoch, id: str, version: int, **fields: str) -> list[ReceiverState]:
        lease = self._broker.settings.lease_seconds
        records = [{"name": name, "value": value} for name, value in fields.items()]
        reply = self._broker.script(
            "invite", epoch=epoch.number, transfer=id, version=version, lease_seconds=lease, fields=records
        )
        return [
            ReceiverState(actor.decode(), int(ranks), alive == 1, answer.decode(), ack.decode())
            for actor, ranks, alive, answer, ack in reply
        ]

    # --- an actor

    def current(self, actor: str, ranks: int) -> tuple[str, int, State | Literal[""]]:
        """Register `actor` as a receiver with `ranks` ranks; the current broadcast's id, version and state."""
        return self._tell(actor, ranks, "", "look", "")[0]

    def answer(self, actor: str, ranks: int, id: str, text: str) -> bool:
        """Answer with `join` or the reason to decline. False when the broadcast is not open any more."""
        return self._tell(actor, ranks, id, "answer", text[:200])[1]

    def acknowledge(self, actor: str, ranks: int, id: str, text: str) -> None:
        """Report the digest of what arrived, or `!` and the reason why nothing did."""
        self._tell(actor, ranks, id, "ack", text[:1000])

    def leave(self, actor: str) -> None:
        """Remove `actor` from the receivers."""
        self._tell(actor, 0, "", "look", "")

    def _tell(
        self, actor: str, ranks: int, id: str, kind: str, text: str
    ) -> tuple[tuple[str, int, State | Literal[""]], bool]:
        found, version, state, took = self._broker.script(
            "answer", actor=actor, ranks=ranks, transfer=id, kind=kind, text=text
        )
        return (found.decode(), int(version), cast(State, state.decode())), took == 1

    def communicator(self, id: str) -> tuple[Communicator, Layout] | None:
        """The fixed participants of broadcast `id` and what they get; None when another broadcast has replaced it.

        Raises WireError."""
        found: list[Any] = self._broker.fields("transfer", ["id", "communicator", "layout"])
        if found[0] is None or found[0].decode() != id or found[1] is None:
            return None
        if len(found[1]) > LAYOUT_BYTES or len(found[2]) > LAYOUT_BYTES:
            raise WireError(f"broadcast {id}: its description has more than {LAYOUT_BYTES} bytes")
        try:
            return Communicator.model_validate_json(found[1]), Layout.model_validate_json(found[2])
        except ValidationError as error:
            raise WireError(f"broadcast {id} cannot be read: {error.errors(include_url=False)[0]['msg']}") from None
