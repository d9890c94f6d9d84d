"""The configuration sections of commands that run other things: `launch` of `sieve run`, `sweep` of `sieve sweep`.

Services that are started one by one ignore both. How many actors and verifiers run is set in their own sections, by
`actor.replicas` and `verifier.serve.<name>.replicas`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from broker.settings import Section


class Share(Section):
    """Resources that Ray reserves for one process of a role; used for placement, not enforced."""

    cpus: Annotated[float, Field(ge=0, le=1024)] = 1.0
    gpus: Annotated[float, Field(ge=0, le=64)] = 0.0


class LaunchSettings(Section):
    """Where `sieve run` starts the services, as Ray actors with a process each, and how it treats their failures."""

    address: str | None = None
    """The Ray cluster to join (`auto`, `host:port`, `ray://…`). Unset: one on this machine that ends with the run."""
    ranks: Annotated[int, Field(ge=1, le=4096)] = 1
    """Number of learner ranks, placed together; when one dies, all start again from the last checkpoint."""
    learner: Share = Share()
    """Resources of each rank."""
    actor: Share = Share()
    """Resources of each actor."""
    verifier: Share = Share(cpus=0.0)
    """Resources of each verifier."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Compute threads (OMP_NUM_THREADS) of every process. Processes times threads should not exceed the cores."""
    object_store_bytes: Annotated[int, Field(ge=80_000_000)] = 100_000_000
    """Ray's shared memory on this machine, in bytes. It can be small: nothing large passes through Ray."""
    dashboard: bool = False
    """Whether to start Ray's dashboard on this machine, which takes about 170 MB and 5 s."""
    restart_limit: Annotated[int, Field(ge=1, le=1000)] = 5
    """Most restarts in a row of a service whose failures may be temporary; the next failure ends the run. Other
    failures end it sooner: a wrong setting at once, anything else the second time in a row."""
    restart_seconds: Annotated[float, Field(gt=0, le=600)] = 0.5
    """Pause before the first restart, in seconds; doubles with each failure in a row, up to 30 s."""
    healthy_seconds: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """A service that ran this long before it failed has started well: its failures in a row are counted from one."""
    drain_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """How long services may take after Ctrl-C to release their work, write a checkpoint and commit; then they are
    killed."""


class SweepSettings(Section):
    """What `sieve sweep` compares; the options of the command replace these."""

    objectives: tuple[str, ...] = ()
    """Each is `alpha=0,.25,.5`, the name of an objective, or either with keys of learner.objective appended, as in
    `grpo:kl_beta=.05`."""
    seeds: Annotated[int, Field(ge=1, le=1000)] = 1
    """Number of runs of each point, with the seeds run.seed, run.seed + 1, …"""
    staleness: tuple[Annotated[int, Field(ge=0, le=1000)], ...] = ()
    """Values of schedule.forced_staleness; each point is run with each of them. Empty: the schedule as it is set."""
    correction: tuple[str, ...] = ()
    """Values of learner.objective.correction. Empty: as it is set, or the objective's default."""
