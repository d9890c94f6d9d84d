"""Sending a version from the learner straight into engines: who takes part, and what is sent. No tensors here.

    learner: open ──▶ actors: join | decline ──▶ learner: fixed (members, where to meet) ──▶ all meet, tensors flow
             over ◀── acknowledgements: the digest of what arrived, or why nothing did

One transfer at a time, a few keys under the run's prefix: `transfer` (hash: id, version, state, layout, group),
`receivers` (actor → ranks it would bring), `answers`, `acks`. The learner fixes the members, so both sides always agree
on who they are; whoever is not among them, or meets trouble, reads the version's files. A version counts as used from
its invitation on (`offered` in the run's state): actors may sample with it as soon as all of it has arrived, before the
pointer moves, and a learner that dies in between publishes what it has under a higher number. So a version never means
two sets of weights.

Members keep their group (the communicator) from version to version; it is built anew when its members change or after
any failure.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker.errors import EX_TEMPORARY, SieveError
from broker.queue.client import Broker
from broker.queue.state import Epoch
from broker.queue.wire import WireError

LAYOUT_BYTES = 32 << 20
"""Largest description of a model's tensors that is read: hundreds of thousands of them."""
PACK_BYTES = 64 << 20
"""Tensors sent in one piece: large enough for the wire's full speed, small beside a model."""
ALIGN = 16
"""Where a tensor may start in a pack, bytes: any dtype can then be read in place."""
JOIN = "join"

State = Literal["open", "fixed", "over"]
Cause = Literal["declined", "late", "dead", "silent", "broken", "differs"]
"""Why an actor did not get a version by broadcast. `late`: no answer in time; `dead`: no heartbeat; `silent`: alive, no
acknowledgement in time; `broken`: it gave up receiving; `differs`: what arrived is not what was sent."""


class TransferBroken(SieveError):
    """A broadcast ended early: a peer died, hung or sent something else. Nothing of it is sampled from."""

    exit_code = EX_TEMPORARY


class Tensor(BaseModel):
    """One tensor as it is sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=1000)]
    dtype: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,32}$")]
    """torch's word: float32, bfloat16 …"""
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    itemsize: Annotated[int, Field(ge=1, le=16)]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.itemsize


class Layout(BaseModel):
    """What a transfer consists of, in the order in which it is sent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tensors: Annotated[tuple[Tensor, ...], Field(min_length=1)]
    pack_bytes: Annotated[int, Field(ge=1)] = PACK_BYTES

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class Seat(BaseModel):
    """A member and its ranks first … first + ranks − 1; the learner has rank 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    actor: str
    ranks: Annotated[int, Field(ge=1)]
    first: Annotated[int, Field(ge=1)]


class Group(BaseModel):
    """The members of a transfer and where they meet."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    """The same as in the transfer before: its communicator is used again."""
    seats: Annotated[tuple[Seat, ...], Field(min_length=1)]
    meeting: dict[str, str | int]
    """`gloo`: address and port of the learner's store. `nccl`: the unique id."""
    seconds: Annotated[float, Field(gt=0)]
    """Limit for meeting, and again for what follows."""

    @property
    def world(self) -> int:
        """All ranks, the learner's included."""
        return 1 + sum(seat.ranks for seat in self.seats)

    def seat(self, actor: str) -> Seat | None:
        return next((seat for seat in self.seats if seat.actor == actor), None)


@dataclass(frozen=True)
class Entry:
    """What the broker knows of one actor that can receive."""

    actor: str
    ranks: int
    alive: bool
    answer: str
    """`join`, why not, or empty."""
    ack: str
    """Digest of what arrived, `!` and why nothing did, or empty."""


@dataclass(frozen=True)
class Outcome:
    """How a transfer went: who has the version, and who does not and why."""

    received: tuple[str, ...]
    missed: Mapping[str, tuple[Cause, str]]


def seats(entries: Iterable[Entry]) -> tuple[Seat, ...]:
    """Ranks for all who join and live, in the order of their ids: the same members always sit the same way."""
    found: list[Seat] = []
    rank = 1
    for entry in sorted(entries, key=lambda entry: entry.actor):
        if entry.alive and entry.answer == JOIN:
            found.append(Seat(actor=entry.actor, ranks=entry.ranks, first=rank))
            rank += entry.ranks
    return tuple(found)


def awaited(entries: Iterable[Entry]) -> list[str]:
    """Living actors that have not answered."""
    return [entry.actor for entry in entries if entry.alive and not entry.answer]


def unacknowledged(group: Group, entries: Iterable[Entry]) -> list[str]:
    """Living members that have not acknowledged."""
    there = {entry.actor: entry for entry in entries}
    return [s.actor for s in group.seats if (e := there.get(s.actor)) is not None and e.alive and not e.ack]


def outcome(invited: Sequence[Entry], group: Group | None, entries: Sequence[Entry], digest: str) -> Outcome:
    """Who has the version. `invited`: as they stood when the members were fixed; `entries`: as they stand now."""
    now = {entry.actor: entry for entry in entries}
    received: list[str] = []
    missed: dict[str, tuple[Cause, str]] = {}
    for before in sorted(invited, key=lambda entry: entry.actor):
        entry = now.get(before.actor)
        if group is None or group.seat(before.actor) is None:
            if not before.alive:
                missed[before.actor] = "dead", "no heartbeat"
            elif before.answer and before.answer != JOIN:
                missed[before.actor] = "declined", before.answer
            else:
                missed[before.actor] = "late", "no answer in time"
        elif entry is not None and entry.ack:
            if entry.ack.startswith("!"):
                missed[before.actor] = "broken", entry.ack[1:]
            elif entry.ack != digest:
                missed[before.actor] = "differs", f"{entry.ack[:16]}… arrived, {digest[:16]}… was sent"
            else:
                received.append(before.actor)
        elif entry is None or not entry.alive:
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


class Transfers:
    """The broker's side of transfers; each method is safe to repeat."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    # --- the learner

    def open(self, epoch: Epoch, id: str, version: int, layout: Layout) -> list[Entry]:
        """Invite everyone who can receive to `version`, which counts as used from now on. Raises Fenced."""
        return self._write(epoch, id, version, state="open", layout=layout.model_dump_json())

    def fix(self, epoch: Epoch, id: str, version: int, group: Group) -> list[Entry]:
        """Nobody joins any more; the members are `group`'s."""
        return self._write(epoch, id, version, group=group.model_dump_json(), state="fixed")

    def over(self, epoch: Epoch, id: str, version: int) -> list[Entry]:
        """The transfer has ended; who has not received by now reads the files."""
        return self._write(epoch, id, version, state="over")

    def look(self, epoch: Epoch, id: str, version: int) -> list[Entry]:
        """How the actors stand."""
        return self._write(epoch, id, version)

    def _write(self, epoch: Epoch, id: str, version: int, **fields: str) -> list[Entry]:
        lease = self._broker.settings.lease_seconds
        args = [part for item in fields.items() for part in item]
        reply = self._broker.script("invite", epoch.number, id, version, lease, *args)
        return [
            Entry(actor.decode(), int(ranks), alive == 1, answer.decode(), ack.decode())
            for actor, ranks, alive, answer, ack in reply
        ]

    # --- an actor

    def seen(self, actor: str, ranks: int) -> tuple[str, int, State | Literal[""]]:
        """Say that `actor` can receive with `ranks` ranks; the current transfer's id, version and state."""
        return self._tell(actor, ranks, "", "look", "")[0]

    def answer(self, actor: str, ranks: int, id: str, text: str) -> bool:
        """`join`, or why not. False when the transfer is not open any more."""
        return self._tell(actor, ranks, id, "answer", text[:200])[1]

    def acknowledge(self, actor: str, ranks: int, id: str, text: str) -> None:
        """The digest of what arrived, or `!` and why nothing did."""
        self._tell(actor, ranks, id, "ack", text[:1000])

    def leave(self, actor: str) -> None:
        """Take part in no more transfers."""
        self._tell(actor, 0, "", "look", "")

    def _tell(
        self, actor: str, ranks: int, id: str, kind: str, text: str
    ) -> tuple[tuple[str, int, State | Literal[""]], bool]:
        found, version, state, took = self._broker.script("answer", actor, ranks, id, kind, text)
        return (found.decode(), int(version), cast(State, state.decode())), took == 1

    def members(self, id: str) -> tuple[Group, Layout] | None:
        """The fixed group and what it gets; None when the transfer is another by now. Raises WireError."""
        found: list[Any] = self._broker.fields("transfer", ["id", "group", "layout"])
        if found[0] is None or found[0].decode() != id or found[1] is None:
            return None
        if len(found[1]) > LAYOUT_BYTES or len(found[2]) > LAYOUT_BYTES:
            raise WireError(f"transfer {id}: its description has more than {LAYOUT_BYTES} bytes")
        try:
            return Group.model_validate_json(found[1]), Layout.model_validate_json(found[2])
        except ValidationError as error:
            raise WireError(f"transfer {id} cannot be read: {error.errors(include_url=False)[0]['msg']}") from None
