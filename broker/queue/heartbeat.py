"""The heartbeat message: the state of a service, read by the leases, `sieve status` and the exporter.

Holds the type only: clients send and read it, `broker/runtime/service.py` fills it. It contains no prompt, completion
or secret.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from broker.printable import one_line

Role = Literal["actor", "verifier", "learner", "broker", "launcher"]
BEATS_PER_LEASE = 4
"""Heartbeats, and refreshes of work in hand, that a service sends within broker.lease_seconds."""
MAX_QUEUES = 256
"""The most verify queues that one service can name in its heartbeat, and so the most that a run can have."""


Shown = AfterValidator(one_line)
"""Made printable where a heartbeat is read: screens show these texts, and whoever reaches Redis can send one."""


class Heartbeat(BaseModel):
    """State of one service; small, and sent whole each time."""

    model_config = ConfigDict(extra="ignore", frozen=True)  # a newer service may send fields that an older reader lacks

    id: Annotated[str, Field(min_length=1, max_length=200), Shown]
    """Unique per process start: `actor-0-<host>-<pid>-<random>`."""
    role: Role
    phase: Annotated[str, Field(max_length=64), Shown]
    """What it does now, from a small fixed set per role: `sampling`, `judging`, `draining` …"""
    waiting_on: Annotated[str, Field(max_length=200), Shown] = ""
    """What it waits for; empty while it works."""
    phase_seconds: Annotated[float, Field(ge=0)] = 0.0
    """How long the phase has lasted. Durations by the sender's monotonic clock: hosts need no common time."""
    waiting_seconds: Annotated[float, Field(ge=0)] = 0.0
    """How long it has waited for `waiting_on` without doing anything else; 0 while it works."""
    trouble: Annotated[str, Field(max_length=32), Shown] = ""
    """What keeps it from working, from a small fixed set per role (`weights_missing`, `verifier_errors` …); empty while
    nothing does. A service with one is not ready."""
    detail: Annotated[str, Field(max_length=400), Shown] = ""
    """The error message behind `trouble`."""
    pid: Annotated[int, Field(ge=0)] = 0
    host: Annotated[str, Field(max_length=255), Shown] = ""
    metrics_url: Annotated[str, Field(max_length=300), Shown] = ""
    """Url of its /metrics; empty before the endpoint answers."""
    index: Annotated[int, Field(ge=0)] = 0
    """Position among the services of the same role, as the launcher counts them."""
    queues: Annotated[tuple[Annotated[str, Field(max_length=64), Shown], ...], Field(max_length=MAX_QUEUES)] = ()
    """Names of the verify queues that this service serves; empty for every role but the verifier."""
    values: Annotated[dict[str, float], Field(max_length=64)] = {}
    """Metrics for the terminal: `tokens_per_second`, `version` …"""
    age_seconds: Annotated[float, Field(ge=0)] = 0.0
    """Seconds since this heartbeat arrived, by the clock of Redis. Filled by the reader, not sent."""

    @property
    def doing(self) -> str:
        """Phase and wait with their durations, and the trouble, as text in one line."""
        text = f"{self.phase} for {self.phase_seconds:.0f} s"
        if self.waiting_on:
            text += f", waits on {self.waiting_on} for {self.waiting_seconds:.0f} s"
        return f"{text}, {self.trouble}: {self.detail}" if self.trouble else text

    def alive(self, lease_seconds: float) -> bool:
        """Whether the service has not stopped and its last heartbeat is younger than the lease."""
        return self.phase != "stopped" and self.age_seconds < lease_seconds
