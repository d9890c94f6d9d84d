"""Admission: the rule that bounds staleness by saying when a new ticket may be granted, as pure functions.

Quantities are counts of groups. `issued` is the number of train groups ever granted (less those that a rollback took
back), `absorbed` the number whose gradient is in the published weights, or that were dropped. With g = groups_per_step
and p = publish_every, one version absorbs K = g · p groups. A group i is open from its issue to its lease; A_i is the
absorbed count when it was issued, under weights of s_i steps: A_i = s_i · g + dropped. A ticket is granted while

    issued − min(A_oldest_open, absorbed) < (S + 1) · K                                                              (1)

Staleness of a group is counted in optimiser steps, in units of a version: ⌊(n − m) / p⌋, where n is the number of steps
in the weights that it is trained from and m the smallest number of steps in weights that sampled one of its tokens.
Without interruptions this is the difference of the version numbers.

Bound. While i is open every grant kept (1), so issued ≤ A_i + (S + 1)·K. Let i be leased for step n + 1. The weights of
n steps contain n·g groups, D were dropped, i is not among them, and all were issued:

    n·g + D < issued ≤ A_i + (S + 1)·K ≤ s_i·g + D + (S + 1)·g·p    ⇒    n − s_i < (S + 1)·p    ⇒    ⌊(n − s_i)/p⌋ ≤ S

A ticket is sampled with the version of its issue or newer ones, and no version contains fewer steps than the one before
it (publish.lua refuses that), so m ≥ s_i and its staleness is at most S, whatever the speeds of actors and verifiers.
No group is discarded for being slow.

Deaths. A learner that dies leaves all of these quantities as they are: the pointer stays on its last version, and
`absorbed` with it, and groups leased after the last commit stay leased for the same steps. Its successor starts from
the committed checkpoint, does those steps again with the same groups, and publishes when it is past the published step.
Nothing in the proof refers to who did a step or how often; the lease of step n + 1 comes after the leases of all steps
before it, in one process or in several. A rollback restores the state after an earlier commit: no group is open then,
and issued = absorbed.

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


def staleness(step: int, sampled_step: int, publish_every: int) -> int:
    """Staleness, in versions, of a token that was sampled with weights of `sampled_step` optimiser steps when it is
    trained on from weights of `step` steps. Weights with more steps, of a learner that has died since, count as 0."""
    return max(0, step - sampled_step) // publish_every


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
