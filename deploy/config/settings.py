"""The configuration section `launch`: on what `sieve run` starts the services, and how it treats their failures.

Read by the launcher only; services started one by one ignore it. How many actors and verifiers run is said by their own
sections: `actor.replicas` and `verifier.serve.<name>.replicas`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from broker.settings import Section


class Share(Section):
    """What one process of a role reserves in Ray's books."""

    cpus: Annotated[float, Field(ge=0, le=1024)] = 1.0
    gpus: Annotated[float, Field(ge=0, le=64)] = 0.0


class LaunchSettings(Section):
    """`sieve run`: one process each for the learner's ranks, the actors and the verifiers, as Ray actors."""

    address: str | None = None
    """A Ray cluster (`auto`, `host:port`, `ray://…`); None starts one on this machine that ends with the run."""
    ranks: Annotated[int, Field(ge=1, le=4096)] = 1
    """Learner ranks: one process each, placed together; when one dies all start again from the last checkpoint."""
    learner: Share = Share()
    """Per rank."""
    actor: Share = Share()
    verifier: Share = Share(cpus=0.0)
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Compute threads (OMP_NUM_THREADS) of every process: more processes times threads than cores slows all of them."""
    object_store_bytes: Annotated[int, Field(ge=80_000_000)] = 100_000_000
    """Ray's shared memory on a local start. Nothing large passes through Ray: payloads go through Redis, weights
    through files."""
    dashboard: bool = False
    """Ray's own dashboard on a local start: about 170 MB and 5 s more."""
    restart_limit: Annotated[int, Field(ge=1, le=1000)] = 5
    """A service that ends badly this many times in a row without having worked for `healthy_seconds` ends the run."""
    restart_seconds: Annotated[float, Field(gt=0, le=600)] = 0.5
    """Pause before the first restart; doubles with each failure in a row, up to 30 s."""
    healthy_seconds: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """A service that lived this long is taken to have started well: its failures are counted from one again."""
    drain_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """After Ctrl-C: how long services may take to hand back, checkpoint and commit before they are killed."""


class SweepSettings(Section):
    """`sieve sweep`: what is compared. Read by that command only; its options replace these."""

    objectives: tuple[str, ...] = ()
    """`alpha=0,.25,.5`, an objective's name, or either with more keys of learner.objective: `grpo:kl_beta=.05`."""
    seeds: Annotated[int, Field(ge=1, le=1000)] = 1
    """Runs of each point, with run.seed, run.seed + 1, …"""
    staleness: tuple[Annotated[int, Field(ge=0, le=1000)], ...] = ()
    """Forced staleness of each point, in lock-step; empty: the schedule as it stands."""
    correction: tuple[str, ...] = ()
    """Values of learner.objective.correction; empty: the objective's own."""
