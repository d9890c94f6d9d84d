"""The state of a run at one moment, as the broker reports it: what waits where, who holds it, and all heartbeats.

`probe` asks the broker; `Snapshot` is what it found, with the sums that the views and the exporter share. Whether
anything stands still is decided in stall.py.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import redis

from broker.errors import BrokerCause, BrokerFull, BrokerUnavailable, RunConflict, SieveError
from broker.queue.admin_client import AdminClient
from broker.queue.heartbeat import Heartbeat, Role
from broker.queue.scripts import cause_of
from broker.queue.state import Depths, RunSpec
from broker.runtime.service import UNREACHABLE, explain

FORGOTTEN_LEASES = 10
"""A silent service that holds nothing is no longer shown after this many leases."""


@dataclass(frozen=True)
class Snapshot:
    """The broker and the services at the Unix time `at`; `at` is 0 before the first probe."""

    at: float
    depths: Depths | None = None
    """None when the broker could not be asked."""
    services: list[Heartbeat] = field(default_factory=list)
    error: str = ""
    """Why the broker cannot be used, with the remedy after the last semicolon; empty when it can. Where it can be read
    and not written, `depths` and `services` are what it holds, and every heartbeat grows old."""
    cause: BrokerCause | None = None
    """The kind of `error`; None without one, and when the broker answers and the run in it cannot be read."""
    lease_seconds: float = 10.0
    """A service whose last heartbeat is older than this counts as dead."""
    spec: RunSpec | None = None
    """None until a learner has opened the run."""

    @property
    def unsafe(self) -> tuple[str, ...]:
        """Settings of the run with which its actors may sample something other than the policy."""
        return () if self.spec is None else self.spec.unsafe

    def alive(self, role: Role) -> list[Heartbeat]:
        """The services of `role` with a recent heartbeat that have not stopped."""
        alive = (heartbeat for heartbeat in self.services if heartbeat.alive(self.lease_seconds))
        return [heartbeat for heartbeat in alive if heartbeat.role == role]

    def silent(self, role: Role) -> list[Heartbeat]:
        """The services of `role` that have not stopped and whose last heartbeat is older than the lease."""
        return [
            heartbeat
            for heartbeat in self.services
            if heartbeat.role == role and heartbeat.phase != "stopped" and not heartbeat.alive(self.lease_seconds)
        ]

    @property
    def listed(self) -> list[Heartbeat]:
        """The services that a person wants to see: those that live, and those that fell silent lately and were not
        replaced by another of the same role and index."""
        alive = {(one.role, one.index) for one in self.services if one.alive(self.lease_seconds)}
        return [
            one
            for one in self.services
            if one.alive(self.lease_seconds)
            or (
                one.phase != "stopped"
                and (one.role, one.index) not in alive
                and one.age_seconds < FORGOTTEN_LEASES * self.lease_seconds
            )
        ]

    @property
    def step(self) -> int:
        """Optimiser steps done, as far as the broker knows: committed ones, and those a live learner reports."""
        reported = [int(learner.values.get("step", 0)) for learner in self.alive("learner")]
        return max([0 if self.depths is None else self.depths.committed_step, *reported])

    @property
    def tokens_per_second(self) -> float:
        """Sampling rate of all live actors together, from their heartbeats."""
        return sum(actor.values.get("tokens_per_second", 0.0) for actor in self.alive("actor"))

    @property
    def canary_mismatch(self) -> float | None:
        """Largest mean |Δ log π| per token, in nats, that a live actor found on its canary; None before one."""
        found = [
            heartbeat.values["canary_mismatch"]
            for heartbeat in self.alive("actor")
            if "canary_mismatch" in heartbeat.values
        ]
        return max(found, default=None)


def probe(broker: AdminClient) -> Snapshot:
    """Ask the broker once. An outage is not raised but returned as the snapshot's `error`."""
    try:
        cause, error = broker.refuses_writes() or (None, "")
        return Snapshot(
            time.time(),
            broker.depths(),
            broker.services(),
            error=error,
            cause=cause,
            lease_seconds=broker.settings.lease_seconds,
            spec=broker.run_spec(),
        )
    except (*UNREACHABLE, SieveError) as error:
        return outage(error)


def outage(error: Exception) -> Snapshot:
    """The snapshot of a broker that could not be asked because of `error`."""
    cause: BrokerCause | None
    if isinstance(error, redis.exceptions.RedisError):
        cause = cause_of(error)
    elif isinstance(error, RunConflict):
        cause = None
    else:
        cause = error.cause if isinstance(error, BrokerUnavailable | BrokerFull) else "unusable"
    return Snapshot(time.time(), error=explain(error)[1], cause=cause)
