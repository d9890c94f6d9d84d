"""The configuration section `verifier`: the queues served, the number of processes for each, and their settings.

Only names are checked here; whether a verifier of that name exists is checked when a service starts (protocol.make).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from broker.queue.heartbeat import MAX_QUEUES
from broker.settings import Section, VerifierName


class QueueSettings(Section):
    """Settings of one verifier's queue."""

    replicas: Annotated[int, Field(ge=0, le=10_000)] = 1
    """Processes that `sieve run` starts for this queue; 0 leaves the queue to services started by other means."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 1
    """Verdicts under way at once in one process, each in a thread: for verifiers that wait for a subprocess or a
    server. For verifiers that compute in Python, raise `replicas` instead."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 256
    """The most completions that one process holds at once."""
    deadline_seconds: Annotated[float, Field(gt=0, le=86_400)] = 120.0
    """A verdict that takes longer is `error` with reason `deadline` and is retried elsewhere."""
    factory: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")] | None = None
    """`package.module:attribute` of a verifier that is neither built in nor installed with an entry point."""
    cache: bool | None = None
    """Whether equal answers to equal records are judged only once, across runs (see `verifier.cache_bytes`). Unset:
    only where a verdict takes longer than asking the broker for a cached one."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for the verifier's constructor."""

    @model_validator(mode="after")
    def _threads_have_work(self) -> QueueSettings:
        if self.batch < self.concurrency:
            raise ValueError(
                f"batch = {self.batch} is less than concurrency = {self.concurrency}: {self.concurrency - self.batch} "
                "threads would never get work; raise batch or lower concurrency"
            )
        return self


class VerifierSettings(Section):
    """Settings of the verifying services, with one entry of `serve` for each verifier that prompts name."""

    serve: Annotated[dict[VerifierName, QueueSettings], Field(min_length=1, max_length=MAX_QUEUES)] = Field(
        default_factory=lambda: {"arithmetic": QueueSettings()}
    )
    cache_bytes: Annotated[int, Field(ge=0, le=1 << 40)] = 64 << 20
    """Redis memory for cached verdicts, shared by all runs on the server; the least recently used are evicted. 0 turns
    the cache off."""
    prefetch_seconds: Annotated[float, Field(ge=0, le=60)] = 0.2
    """Seconds of work that a process may hold beyond what it is judging: enough to hide the round trip to the broker,
    and little enough that a process that joins later still finds work in the queue."""
    drain_seconds: Annotated[float, Field(ge=0, le=3600)] = 5.0
    """How long verdicts under way may still take after SIGTERM before their completions are requeued."""
