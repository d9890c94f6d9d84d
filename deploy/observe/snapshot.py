"""One look at a run: queue depths and services from the broker, progress from metrics.jsonl, and where it is stuck,
if it is.

Read by the live view, `sieve status` and the exporter. Changes nothing. `stuck` is a pure function of the look.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.errors import SieveError
from broker.queue.client import Broker
from broker.queue.heartbeat import Heartbeat
from broker.queue.state import Depths
from broker.runtime.service import UNREACHABLE, explain

RECENT = 20
"""Steps over which rates are averaged."""
STILL_SECONDS = 30.0
"""A wait shorter than this is the pipeline breathing, not stuck."""


@dataclass(frozen=True)
class Snapshot:
    """What one look saw; `error` says why the broker could not be asked."""

    at: float
    depths: Depths | None = None
    services: list[Heartbeat] = field(default_factory=list)
    error: str = ""
    lease_seconds: float = 10.0
    """A heartbeat older than this means dead."""

    def alive(self, role: str) -> list[Heartbeat]:
        """The services of a role that heartbeat and have not ended."""
        return [
            heartbeat for heartbeat in self.services
            if heartbeat.role == role and heartbeat.age_seconds < self.lease_seconds and heartbeat.phase != "stopped"
        ]  # fmt: skip

    @property
    def tokens_per_second(self) -> float:
        """Sampled by all actors together, as they report it."""
        return sum(
            heartbeat.values.get("tokens_per_second", 0.0) for heartbeat in self.services if heartbeat.role == "actor"
        )

    @property
    def canary_mismatch(self) -> float | None:
        """The largest mean |Δ log π| per token that a live actor found on its weights' canary; None before one."""
        found = [p.values["canary_mismatch"] for p in self.alive("actor") if "canary_mismatch" in p.values]
        return max(found, default=None)


def look(broker: Broker) -> Snapshot:
    """Ask the broker once."""
    try:
        lease = broker.settings.lease_seconds
        return Snapshot(time.time(), broker.depths(), broker.services(), lease_seconds=lease)
    except (*UNREACHABLE, SieveError) as error:
        return Snapshot(time.time(), error=explain(error)[1])


class Tail:
    """Follows metrics.jsonl: the newest record and the pace, reading only what was appended since the last call."""

    def __init__(self, run: Path) -> None:
        self._path = run / "metrics.jsonl"
        self._offset = 0
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT)

    def read(self) -> dict[str, Any] | None:
        """The newest step's record, None before the first."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._offset:
                    self._offset = 0  # written anew
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # being written now
                    self._offset += len(line)
                    self.recent.append(json.loads(line))
        except FileNotFoundError:
            return None
        return self.recent[-1] if self.recent else None

    def seconds_per_step(self) -> float | None:
        """Median of the recent steps, waits included; None before three: the first waits for all to start."""
        paces = [record["seconds"] for record in self.recent if record.get("seconds") is not None]
        return statistics.median(paces) if len(paces) >= 3 else None


def stuck(snapshot: Snapshot) -> list[str]:
    """The edges of the graph on which nothing can move, each with what to do; empty when the run moves or is over."""
    depths = snapshot.depths
    if snapshot.error:
        return [f"everything → BROKER: {snapshot.error}"]
    if depths is None or depths.finished:
        return []
    found = []
    lease_seconds = snapshot.lease_seconds
    learners = snapshot.alive("learner")
    actors = snapshot.alive("actor")
    verifiers = snapshot.alive("verifier")
    if not depths.opened and not learners:
        found.append("LEARNER → run: nobody has opened the run; start `sieve learner CONFIG`")
    elif not learners:
        found.append(
            f"group → LEARNER: no live learner, {depths.ready} groups are ready and {depths.leased} leased; "
            f"start `sieve learner CONFIG`"
        )
    if depths.opened and not actors:
        waiting = depths.returned + depths.eval_waiting
        found.append(f"ticket → ACTOR: no live actor, {waiting} tickets wait; start `sieve actor CONFIG`")
    for name in sorted(depths.verify):
        if depths.verify[name] and not verifiers:
            found.append(
                f"completion → VERIFIER {name}: no live verifier, {depths.verify[name]} completions wait; "
                f"start `sieve verifier CONFIG`"
            )
    if found:
        return found
    for heartbeat in snapshot.services:
        lost = heartbeat.age_seconds >= lease_seconds and heartbeat.phase != "stopped"
        if lost and heartbeat.age_seconds < 10 * lease_seconds and heartbeat.role in ("actor", "verifier", "learner"):
            found.append(
                f"{heartbeat.role.upper()}: {heartbeat.id} has not been heard of for "
                f"{heartbeat.age_seconds:.0f} s (limit {lease_seconds:g} s); what it held goes to the others"
            )
    if depths.opened and _all_wait(snapshot, [*learners, *actors, *verifiers]):
        found += [
            f"{heartbeat.role.upper()}: {heartbeat.id} waits on {heartbeat.waiting_on} "
            f"for {snapshot.at - heartbeat.since:.0f} s"
            for heartbeat in [*learners, *actors]
        ]
    return found


def _all_wait(snapshot: Snapshot, services: list[Heartbeat]) -> bool:
    """Nobody works: every live service has waited for the same thing for long."""
    return bool(services) and all(
        heartbeat.waiting_on and snapshot.at - heartbeat.since > STILL_SECONDS for heartbeat in services
    )
