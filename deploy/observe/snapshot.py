"""The state of a run at one moment, as the broker reports it: queue depths and the heartbeats of all services.

`probe` asks the broker; `Snapshot` is what it found, with the sums that the views and the exporter share. Whether
anything stands still is decided in stall.py.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from broker.errors import SieveError
from broker.queue.admin_client import AdminClient
from broker.queue.heartbeat import Heartbeat, Role
from broker.queue.state import Depths
from broker.runtime.service import UNREACHABLE, explain


@dataclass(frozen=True)
class Snapshot:
    """Queue depths and services at the Unix time `at`; `at` is 0 before the first probe."""

    at: float
    depths: Depths | None = None
    """None when the broker could not be asked."""
    services: list[Heartbeat] = field(default_factory=list)
    error: str = ""
    """Why the broker could not be asked, with the remedy; empty when it answered."""
    lease_seconds: float = 10.0
    """A service whose last heartbeat is older than this counts as dead."""
    unsafe: tuple[str, ...] = ()
    """Settings of the run with which its actors may sample something other than the policy."""

    def alive(self, role: Role) -> list[Heartbeat]:
        """The services of `role` with a recent heartbeat that have not stopped."""
        alive = (heartbeat for heartbeat in self.services if heartbeat.alive(self.lease_seconds))
        return [heartbeat for heartbeat in alive if heartbeat.role == role]

    @property
    def tokens_per_second(self) -> float:
        """Sampling rate of all actors together, from their heartbeats."""
        actors = (heartbeat for heartbeat in self.services if heartbeat.role == "actor")
        return sum(heartbeat.values.get("tokens_per_second", 0.0) for heartbeat in actors)

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
        spec = broker.run_spec()
        return Snapshot(
            time.time(),
            broker.depths(),
            broker.services(),
            lease_seconds=broker.settings.lease_seconds,
            unsafe=() if spec is None else spec.unsafe,
        )
    except (*UNREACHABLE, SieveError) as error:
        return Snapshot(time.time(), error=explain(error)[1])
