"""Admission: the rule that bounds staleness by saying when a new ticket may be granted, as pure functions.

Quantities are counts of groups. `issued` is the number of train groups ever granted, `absorbed` the number whose
gradient is in the published weights, or that were dropped. One version absorbs K = groups_per_step · publish_every
groups. A group is open from its issue to its lease; A_i is the absorbed count when open group i was issued. A ticket is
granted while

    issued − min(A_oldest_open, absorbed) < (S + 1) · K                                                              (1)

Bound. While i is open every grant kept (1), so issued ≤ A_i + (S + 1)·K. When i is leased at version V, V·K groups are
absorbed and i is not among them: V·K < issued ≤ A_i + (S + 1)·K = (v_i + S + 1)·K, hence V − v_i ≤ S. Its staleness
is at most S versions, whatever the speeds of actors and verifiers, and no group is discarded for being slow.

Progress. With nothing open and nothing leased, issued = absorbed, and (1) holds for every S ≥ 0: the window always
reopens. One whole step fits the window for every S ≥ 0, because K ≥ groups_per_step.

Closed loop. While the effective sample size is below its target, admission aims at a smaller staleness A ≤ S and also
requires

    issued − absorbed < (A + 1) · K                                                                                  (2)

Rule (1) still applies, so the bound holds. Rule (2) counts from `absorbed` and not from the oldest open group: groups
older than A may be open when A shrinks, and counting from them could close the window with too few groups left for a
step. Counted from `absorbed`, a window closed by (2) means that at least K unabsorbed groups exist. Those that are
leased are absorbed by publishing; if they are fewer than K, at least groups_per_step others are open (both counts are
multiples of groups_per_step). So the learner leases or publishes next, and either way the window reopens.

take.lua applies the same rules inside Redis; a test compares the two after every move of random schedules.
"""

from __future__ import annotations

from broker.settings import BrokerSettings, SamplingSettings, ScheduleSettings

BYTES_PER_TOKEN = 4 + 4 + 4 + 8
"""Token id, sampler log-prob, base log-prob, and about eight bytes of text."""
BYTES_PER_COMPLETION = 512
"""Keys, verdict and map overhead of one completion in Redis."""


def window(schedule: ScheduleSettings) -> int:
    """Groups that may be issued beyond the absorbed count of the oldest open group: (S + 1) · K."""
    return (schedule.max_staleness + 1) * schedule.groups_per_version


def admits(
    *,
    issued: int,
    absorbed: int,
    oldest_open: int | None,
    window: int,
    queued_bytes: int,
    max_queued_bytes: int,
    aim: int | None = None,
) -> bool:
    """Whether rules (1) and (2) and the memory cap allow another ticket.

    `oldest_open`: the absorbed count at the issue of the oldest open group, None when no group is open. `window`:
    (S + 1) · K of rule (1). `aim`: (A + 1) · K of rule (2), None without it.
    """
    seen = absorbed if oldest_open is None else min(oldest_open, absorbed)
    return issued - seen < window and (aim is None or issued - absorbed < aim) and queued_bytes < max_queued_bytes


def tightened(admitted: int, *, bound: int, ess: float, target: float | None) -> int:
    """The staleness to aim at next: half of `admitted` when `ess` is below `target`, else one more; within [0, bound].

    `ess` is an effective sample size as a share. Halving reacts within few versions, and single steps up find what is
    possible without overshooting (additive increase, multiplicative decrease). Without a target the result is `bound`;
    an `ess` of NaN (a step without samples) changes nothing.
    """
    if target is None:
        return bound
    current = min(max(admitted, 0), bound)
    if ess != ess:
        return current
    return current // 2 if ess < target else min(current + 1, bound)


def largest_group_bytes(sampling: SamplingSettings) -> int:
    """Upper estimate of the bytes that one group takes in Redis, with every completion at full length."""
    return sampling.group_size * (sampling.max_new_tokens * BYTES_PER_TOKEN + BYTES_PER_COMPLETION)


def check(schedule: ScheduleSettings, sampling: SamplingSettings, broker: BrokerSettings) -> None:
    """Refuse settings under which the run would deadlock.

    The learner starts a step only when groups_per_step groups are ready, and what waits for a commit
    (checkpoint_every steps) keeps its bytes: if the memory cap is reached before that, no ticket is granted and no
    step can start.

    Raises:
        ValueError: the message names the setting, its value, the least that works, and the remedy.
    """
    needed = schedule.groups_per_step * (schedule.checkpoint_every + 1) * largest_group_bytes(sampling)
    if broker.max_queued_bytes < needed:
        raise ValueError(
            f"broker.max_queued_bytes = {broker.max_queued_bytes} would deadlock: {schedule.checkpoint_every} "
            f"uncommitted steps (schedule.checkpoint_every) and the next one, of {schedule.groups_per_step} groups at "
            f"full length, need {needed} bytes; raise it to at least {needed}, or lower schedule.checkpoint_every"
        )
