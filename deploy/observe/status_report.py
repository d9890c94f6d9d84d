"""The state of a run as JSON, as `sieve status --json` prints it: the fields, and how a snapshot fills them.

Programs read this: a field is never renamed or given another meaning without a new `schema` number; fields are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from broker.errors import BrokerCause
from broker.queue.state import Depths
from deploy.observe.snapshot import Snapshot
from deploy.observe.stall import Stall, StallKind
from deploy.observe.view import steps_done
from learner.step_record import StepRecord

SCHEMA = 1

RunState = Literal["moving", "stalled", "finished", "stopped", "unknown"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StallReport(_Part):
    """One place where the run cannot move."""

    kind: StallKind
    """One of the table below."""
    queue: str
    """The queue concerned (`tickets`, `verify:<name>`, `ready`), `broker`, `run`, or the id of a service."""
    reason: str
    """What was seen, with its numbers; for a person."""
    remedy: str
    """What to do about it; for a person."""


class ServiceReport(_Part):
    """One service, as of its last heartbeat."""

    id: str
    """Unique per process start."""
    role: str
    """`actor`, `verifier`, `learner`, `broker` or `launcher`."""
    index: int
    """Position among the services of the same role."""
    host: str
    """Name of its machine."""
    pid: int
    """Its process there."""
    alive: bool
    """Whether its last heartbeat is younger than `broker.lease_seconds`."""
    heartbeat_seconds: float
    """Age of the last heartbeat."""
    phase: str
    """What it did then."""
    phase_seconds: float
    """How long it had done so."""
    waiting_on: str
    """What it waited for; empty while it worked."""
    waiting_seconds: float
    """How long it had waited for that without doing anything else."""
    trouble: str
    """What keeps it from working, a fixed word; empty while nothing does. /readyz answers 503 while something does."""
    detail: str
    """The error message behind `trouble`."""
    queues: list[str]
    """Verify queues that it serves."""
    values: dict[str, float]
    """Measured numbers, such as `tokens_per_second` and `version`."""


class StatusReport(_Part):
    """The state of a run at one moment."""

    schema_number: int = Field(default=SCHEMA, alias="schema", serialization_alias="schema")
    """Number of this format."""
    name: str
    """`run.name`."""
    at: float
    """Unix time of the answer, by the clock of the machine that asked."""
    state: RunState
    """`moving`, `stalled`, `finished`; `stopped` when neither its private Redis nor its launcher lives; `unknown` when
    the broker cannot be asked."""
    step: int
    """Optimiser steps done."""
    steps: int
    """Optimiser steps in the whole run."""
    stalls: list[StallReport]
    """Places where the run cannot move; causes, not their consequences."""
    error: str
    """Why the broker cannot be used, with the remedy; empty when it can."""
    cause: BrokerCause | None
    """The kind of `error`; `stalls` has `broker_<cause>` then."""
    tokens_per_second: float
    """Sampling rate of all live actors together."""
    services: list[ServiceReport]
    """Live services, and those that fell silent lately and were not replaced."""
    depths: Depths | None
    """What waits where, and who holds it; None when the broker cannot be asked."""
    unsafe: list[str]
    """Settings with which actors may sample something other than the policy."""
    record: dict[str, Any] | None
    """The newest line of metrics.jsonl; None where there is none, as on a machine without the run directory."""


def report(
    name: str, steps: int, state: RunState, snapshot: Snapshot, record: StepRecord | None, stalls: Sequence[Stall]
) -> StatusReport:
    """The report on `snapshot`, diagnosed as `stalls`; `steps` by the configuration, for a run that is not opened."""
    return StatusReport(
        name=name,
        at=snapshot.at,
        state=state,
        step=steps_done(snapshot, record),
        steps=steps if snapshot.spec is None else snapshot.spec.steps,
        stalls=[StallReport(kind=one.kind, queue=one.queue, reason=one.reason, remedy=one.remedy) for one in stalls],
        error=snapshot.error,
        cause=snapshot.cause,
        tokens_per_second=snapshot.tokens_per_second,
        services=[
            ServiceReport(
                alive=one.alive(snapshot.lease_seconds),
                heartbeat_seconds=one.age_seconds,
                **one.model_dump(exclude={"age_seconds", "metrics_url", "queues"}),
                queues=list(one.queues),
            )
            for one in snapshot.listed
        ],
        depths=snapshot.depths,
        unsafe=list(snapshot.unsafe),
        record=None if record is None else record.plain(),
    )
