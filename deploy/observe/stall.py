"""Diagnosis of a run that does not move: a pure function from a Snapshot to the stalls in it.

A stall is a place in the pipeline where nothing can pass, with its reason and what to do about it. The text that people
read in `sieve status`, in the live view and in the launcher's log is made here and nowhere else; the exporter counts
stalls by `kind`. Does no I/O.
"""

from __future__ import annotations

import typing
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from broker.queue.heartbeat import Heartbeat
from deploy.observe.snapshot import Snapshot

StallKind = Literal[
    "broker_unreachable", "run_not_opened", "no_learner", "no_actor", "no_verifier", "service_silent", "all_waiting"
]
"""What is wrong, as a value of the metric label `kind`."""
STALL_KINDS: tuple[StallKind, ...] = typing.get_args(StallKind)
LONG_WAIT_SECONDS = 30.0
"""Shorter waits are normal: every service waits for its neighbours now and then."""
LASTING_SECONDS = 30.0
"""A stall is reported unasked after this time: services start, and start again after a failure, within it."""
FORGOTTEN_LEASES = 10
"""A silent service is no longer reported after this many leases: its work has long been given to others."""


@dataclass(frozen=True)
class Stall:
    """One place where the run cannot move."""

    kind: StallKind
    queue: str
    """The queue concerned (`tickets`, `verify:<name>`, `ready`), `broker`, `run`, or the id of a service."""
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.queue}: {self.reason}; {self.remedy}"


def diagnose(snapshot: Snapshot, started: Collection[str] = ()) -> list[Stall]:
    """Every stall in `snapshot`; empty when the run moves or is finished.

    `started` names the queues (see Stall.queue) whose services the caller starts, and starts again, by itself.
    Missing services come first, and alone: as long as one is missing, that others wait is only its consequence.
    """
    if snapshot.error:
        # Error messages end with their remedy, after the last semicolon.
        reason, _, remedy = snapshot.error.removeprefix("broker: ").rpartition("; ")
        return [Stall("broker_unreachable", "broker", reason or "cannot be asked", remedy)]
    if snapshot.depths is None or snapshot.depths.finished:
        return []
    return [*_missing(snapshot, started)] or [*_silent(snapshot), *_all_waiting(snapshot)]


def _missing(snapshot: Snapshot, started: Collection[str]) -> Iterator[Stall]:
    """Queues that no live service works on."""
    depths = snapshot.depths
    assert depths is not None

    def missing(kind: StallKind, queue: str, reason: str, command: str) -> Stall:
        by_itself = "it is being started; if that takes long, see its log in <run>/logs"
        return Stall(kind, queue, reason, by_itself if queue in started else f"start `{command}`")

    if not snapshot.alive("learner"):
        if depths.opened:
            reason = f"no live learner, {depths.ready} groups are ready and {depths.leased} leased"
            yield missing("no_learner", "ready", reason, "sieve learner CONFIG")
        else:
            yield missing("run_not_opened", "run", "no learner has opened it yet", "sieve learner CONFIG")
    if depths.opened and not snapshot.alive("actor"):
        reason = f"no live actor, {depths.returned + depths.eval_waiting} tickets wait"
        yield missing("no_actor", "tickets", reason, "sieve actor CONFIG")
    served = {name for verifier in snapshot.alive("verifier") for name in verifier.queues}
    for name, waiting in sorted(depths.verify.items()):
        if waiting and name not in served:
            reason = f"no live verifier serves this queue, {waiting} completions wait"
            yield missing("no_verifier", f"verify:{name}", reason, f"sieve verifier CONFIG --name {name}")


def _silent(snapshot: Snapshot) -> Iterator[Stall]:
    """Services that stopped sending heartbeats without having stopped properly."""
    lease = snapshot.lease_seconds
    for heartbeat in snapshot.services:
        works = heartbeat.role in ("actor", "verifier", "learner") and heartbeat.phase != "stopped"
        if works and lease <= heartbeat.age_seconds < FORGOTTEN_LEASES * lease:
            reason = f"no heartbeat for {heartbeat.age_seconds:.0f} s (limit {lease:g} s)"
            remedy = f"its work returns to the others by itself; see its log in logs/{heartbeat.id}.log"
            yield Stall("service_silent", heartbeat.id, reason, remedy)


def _all_waiting(snapshot: Snapshot) -> Iterator[Stall]:
    """The waits of learner and actors when every live service has been waiting for long."""
    learners, actors = snapshot.alive("learner"), snapshot.alive("actor")
    everyone = [*learners, *actors, *snapshot.alive("verifier")]
    if not (snapshot.depths and snapshot.depths.opened and everyone):
        return
    if not all(_waits_long(heartbeat, snapshot.at) for heartbeat in everyone):
        return
    for heartbeat in [*learners, *actors]:
        waited = snapshot.at - heartbeat.since
        reason = f"has waited on {heartbeat.waiting_on} for {waited:.0f} s while every other service waits too"
        yield Stall("all_waiting", heartbeat.id, reason, f"see its log in logs/{heartbeat.id}.log")


def _waits_long(heartbeat: Heartbeat, now: float) -> bool:
    return bool(heartbeat.waiting_on) and now - heartbeat.since > LONG_WAIT_SECONDS


class LastingStalls:
    """The stalls that were found without a break for LASTING_SECONDS; for whoever diagnoses again and again."""

    def __init__(self) -> None:
        self._since: dict[tuple[StallKind, str], float] = {}

    def update(self, stalls: Sequence[Stall], now: float) -> list[Stall]:
        """Those of `stalls`, the newest diagnosis, that have lasted; `now` is a monotonic time in seconds."""
        self._since = {(stall.kind, stall.queue): self._since.get((stall.kind, stall.queue), now) for stall in stalls}
        return [stall for stall in stalls if now - self._since[stall.kind, stall.queue] >= LASTING_SECONDS]
