"""Made-up snapshots: queue depths and heartbeats at the time NOW."""

from __future__ import annotations

from typing import Any

from broker.queue.heartbeat import Heartbeat
from broker.queue.state import Depths

NOW = 1000.0


def depths(**more: Any) -> Depths:
    """Depths of an opened, unfinished run with empty queues, changed by `more`."""
    names = {name: 0 for name in Depths.model_fields}
    lists: dict[str, Any] = {name: [] for name in ("staleness_in_flight", "staleness_in_queue", "leases", "queues")}
    words: dict[str, Any] = {"most_issued": [], "verify": {}, "learner": "", "oldest_open": ""}
    never: dict[str, Any] = {"offered_seconds": -1.0, "judged_seconds": -1.0}
    return Depths.model_validate({**names, "finished": False, "opened": True, **lists, **words, **never, **more})


def heartbeat(
    role: str,
    *,
    age: float = 1.0,
    waiting_on: str = "",
    seconds: float = 1.0,
    index: int = 0,
    phase: str = "working",
    queues: tuple[str, ...] = (),
    name: str = "",
    metrics_url: str = "",
) -> Heartbeat:
    """One service; a verifier serves `arithmetic` unless told otherwise."""
    return Heartbeat.model_validate(
        {
            "id": name or f"{role}-0-host-1-abc",
            "role": role,
            "phase": phase,
            "waiting_on": waiting_on,
            "phase_seconds": seconds,
            "waiting_seconds": seconds if waiting_on else 0.0,
            "index": index,
            "age_seconds": age,
            "queues": queues or (("arithmetic",) if role == "verifier" else ()),
            "metrics_url": metrics_url,
        }
    )


ALL = [heartbeat("actor"), heartbeat("learner"), heartbeat("verifier")]
"""One live service of each role."""
