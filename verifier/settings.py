"""The configuration section `verifier`: which queues are served, by how many processes, and how.

Knows names only; whether a verifier of that name exists is asked when a service starts (verdicts.make).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from broker.settings import Section

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]


class QueueSettings(Section):
    """One verifier's queue."""

    replicas: Annotated[int, Field(ge=0, le=10_000)] = 1
    """Processes that `sieve run` starts for this queue alone; 0 leaves it to services started by other means."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 1
    """Verdicts under way at once in one process. Threads: for verifiers that wait (a subprocess, a server); for
    those that compute in Python, raise `replicas` instead."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 256
    """Most completions one process holds at once."""
    deadline_seconds: Annotated[float, Field(gt=0, le=86_400)] = 120.0
    """A verdict that takes longer is `error` with reason `deadline` and is tried elsewhere."""
    factory: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")] | None = None
    """`package.module:attribute` of a verifier that is neither built in nor installed with an entry point."""
    cache: bool | None = None
    """Whether equal answers to equal records are judged once, by whichever run (`verifier.cache_bytes`); unset: where a
    verdict takes longer than asking the broker for it."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the verifier's constructor."""

    @model_validator(mode="after")
    def _threads_have_work(self) -> QueueSettings:
        if self.batch < self.concurrency:
            raise ValueError(
                f"batch = {self.batch} is less than concurrency = {self.concurrency}: "
                f"{self.concurrency - self.batch} threads would never get work; raise batch or lower concurrency"
            )
        return self


class VerifierSettings(Section):
    """The verifier tier: one entry of `serve` for each verifier that prompts name."""

    serve: Annotated[dict[Name, QueueSettings], Field(min_length=1)] = Field(
        default_factory=lambda: {"arithmetic": QueueSettings()}
    )
    cache_bytes: Annotated[int, Field(ge=0, le=1 << 40)] = 64 << 20
    """Redis memory for verdicts to be used again, shared by all runs on the server; the least recently used make room.
    0 keeps none."""
    prefetch_seconds: Annotated[float, Field(ge=0, le=60)] = 0.2
    """How many seconds of work a process may hold beyond what it is working on: enough to hide the round trip to the
    broker, little enough that another process joining finds its share of the queue still there."""
    drain_seconds: Annotated[float, Field(ge=0, le=3600)] = 5.0
    """After SIGTERM: how long verdicts under way may still take before they are put back for others."""
