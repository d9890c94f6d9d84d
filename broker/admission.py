"""When a new ticket may be granted: the one rule that bounds staleness, as pure functions.

Count groups. `issued` is the number of train groups ever granted, `absorbed` the number whose gradient is in the
published weights (or that were dropped). One version absorbs K = groups_per_step · publish_every groups. A group is
open from its issue to its lease; A_i is the absorbed count when open group i was issued. A ticket is granted while

    issued − min(A_oldest_open, absorbed) < (S + 1) · K                                                              (1)

Bound. While i is open every grant kept (1), so issued ≤ A_i + (S + 1)·K. When i is leased at version V, V·K groups are
absorbed and i is not among them: V·K < issued ≤ A_i + (S + 1)·K = (v_i + S + 1)·K, hence V − v_i ≤ S: its staleness
is at most S versions, whatever the speeds of actors and verifiers. Nothing is discarded for being slow.

Progress. With nothing open and nothing leased, issued = absorbed, and (1) holds for every S ≥ 0: the window always
reopens. One whole step fits the window for every S ≥ 0, because K ≥ groups_per_step.

take.lua applies the same rule inside Redis; tests hold the two against each other.
"""

from __future__ import annotations

from broker.settings import BrokerSettings, SamplingSettings, ScheduleSettings

BYTES_PER_TOKEN = 4 + 4 + 4 + 8
"""Token id, behaviour log-prob, base log-prob, and about eight bytes of text."""
BYTES_PER_COMPLETION = 512
"""Keys, verdict and map overhead of one completion in Redis."""


def window(schedule: ScheduleSettings) -> int:
    """Groups that may be issued beyond what the oldest open group saw absorbed: (S + 1) · K."""
    return (schedule.max_staleness + 1) * schedule.groups_per_version


def admits(
    *, issued: int, absorbed: int, oldest_open: int | None, window: int, queued_bytes: int, max_queued_bytes: int
) -> bool:
    """Rule (1) and the memory cap. `oldest_open` is A of the oldest open group, None when no group is open."""
    seen = absorbed if oldest_open is None else min(oldest_open, absorbed)
    return issued - seen < window and queued_bytes < max_queued_bytes


def largest_group_bytes(sampling: SamplingSettings) -> int:
    """Upper estimate of one group's bytes in Redis, every completion at full length."""
    return sampling.group_size * (sampling.max_new_tokens * BYTES_PER_TOKEN + BYTES_PER_COMPLETION)


def check(schedule: ScheduleSettings, sampling: SamplingSettings, broker: BrokerSettings) -> None:
    """Refuse settings under which the pipeline must come to rest.

    The learner starts a step only when groups_per_step groups are ready, and what waits for a commit
    (checkpoint_every steps) keeps its bytes: if the memory cap is reached before that, no ticket is granted and no
    step can start.

    Raises:
        ValueError: naming the setting, its value, the least that works, and the remedy.
    """
    needed = schedule.groups_per_step * (schedule.checkpoint_every + 1) * largest_group_bytes(sampling)
    if broker.max_queued_bytes < needed:
        raise ValueError(
            f"broker.max_queued_bytes = {broker.max_queued_bytes} would deadlock: {schedule.checkpoint_every} "
            f"uncommitted steps "
            f"and the next one (schedule.checkpoint_every + 1) of {schedule.groups_per_step} groups at full length "
            f"need {needed} "
            f"bytes; raise it to at least {needed}, or lower schedule.checkpoint_every"
        )
