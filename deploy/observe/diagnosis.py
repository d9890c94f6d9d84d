"""Diagnosis of a run that does not move: a pure function from a Snapshot to the stalls in it.

What is said comes from what the broker knows: who holds which ticket and completion and for how long, which queue
nobody serves, when the last completion and the last verdict arrived. What a service says of itself (its wait, its
trouble) only explains it. Causes come before consequences, and alone:

    the broker  →  a missing or silent service, one that cannot work  →  work that does not come back  →  admission

The text that people read in `sieve status`, in the live view and in the launcher's log is made here and nowhere else;
the exporter counts stalls by `kind`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import cast

from broker.queue.heartbeat import Heartbeat, Role
from broker.queue.state import Depths, TicketLease, VerifyQueue
from deploy.observe.snapshot import Snapshot
from deploy.observe.stall import STALL_KINDS, Stall, StallKind

LONG_WAIT_SECONDS = 10.0
"""Shorter waits are normal: every service waits for its neighbours now and then."""
FIRST_TICKET_SECONDS = 60.0
"""A ticket may take this long while no ticket of the run has been completed."""
SLOW = 5.0
"""A ticket, or a phase of the learner, counts as slow from this many times its average on."""
FIRST_STEP_SECONDS = 300.0
"""A phase of the learner may take this long while no step of the run is done: large models are read for minutes."""
OFTEN = 4
"""A ticket that was issued so often and never finished ends its actors, or is released by each of them."""

LOG = "see its log in logs/{}.log"
BY_ITSELF = "it is being started; if that takes long, see its log in <run>/logs"


def diagnose(snapshot: Snapshot, started: Collection[str] = ()) -> list[Stall]:
    """Every stall in `snapshot`; empty when the run moves or is finished.

    `started` names the queues (see Stall.queue) whose services the caller starts, and starts again, by itself.
    """
    if snapshot.error:
        return [_broker(snapshot)]
    depths = snapshot.depths
    if depths is None or depths.finished:
        return []
    if missing := list(_missing(snapshot, depths, started)):
        return missing
    unable = [*_silent(snapshot, depths), *_in_trouble(snapshot), *_reissued(depths), *_dead_lettered(depths)]
    return unable or list(_edge(snapshot, depths))


def _broker(snapshot: Snapshot) -> Stall:
    # Error messages end with their remedy, after the last semicolon, or colon where they have none.
    error = snapshot.error.removeprefix("broker: ")
    reason, _, remedy = error.rpartition("; " if "; " in error else ": ")
    kind = cast(StallKind, "run_unreadable" if snapshot.cause is None else f"broker_{snapshot.cause}")
    return Stall(kind, "broker", reason or "cannot be asked", remedy)


# ---------------------------------------------------------------------- services that are not there


def _missing(snapshot: Snapshot, depths: Depths, started: Collection[str]) -> Iterator[Stall]:
    """Queues that no live service works on."""

    def missing(kind: StallKind, queue: str, reason: str, command: str) -> Stall:
        return Stall(kind, queue, reason, BY_ITSELF if queue in started else f"start `{command}`")

    learners = snapshot.alive("learner")
    if not learners:
        if depths.opened:
            reason = f"no live learner, {depths.ready} groups are ready and {depths.leased} leased"
            reason += _last_seen(snapshot.silent("learner"))
            yield missing("no_learner", "ready", reason, "sieve learner CONFIG")
        else:
            yield missing("run_not_opened", "run", "no learner has opened it yet", "sieve learner CONFIG")
    elif all(learner.waiting_on == WAITS_FOR_LEASE for learner in learners):
        yield from _lease_of_the_dead(snapshot, depths, learners)
    if depths.opened and not snapshot.alive("actor"):
        reason = f"no live actor, {depths.returned + depths.eval_waiting} tickets wait"
        reason += _last_seen(snapshot.silent("actor"))
        yield missing("no_actor", "tickets", reason, "sieve actor CONFIG")
    served = {name for verifier in snapshot.alive("verifier") for name in verifier.queues}
    for name, waiting in sorted(depths.verify.items()):
        if waiting and name not in served:
            reason = f"no live verifier serves this queue, {waiting} completions wait"
            reason += _last_seen([one for one in snapshot.silent("verifier") if name in one.queues])
            yield missing("no_verifier", f"verify:{name}", reason, f"sieve verifier CONFIG --name {name}")


WAITS_FOR_LEASE = "the previous learner's lease"


def _lease_of_the_dead(snapshot: Snapshot, depths: Depths, learners: Iterable[Heartbeat]) -> Iterator[Stall]:
    """Learners that wait for the lease of one whose heartbeats stopped."""
    if depths.learner in {learner.id for learner in snapshot.services if learner.alive(snapshot.lease_seconds)}:
        return
    for learner in learners:
        reason = f"waits for the lease of {depths.learner or 'another learner'}, which sends no heartbeat any more"
        yield Stall("learner_lease", learner.id, reason, "it takes over by itself when the lease has expired")


def _last_seen(silent: Iterable[Heartbeat]) -> str:
    """The service that fell silent last, for the end of a reason."""
    newest = min(silent, key=lambda heartbeat: heartbeat.age_seconds, default=None)
    if newest is None:
        return ""
    where = f"pid {newest.pid} on {newest.host}" if newest.pid else newest.host
    return f"; {newest.id} ({where}) sent its last heartbeat {newest.age_seconds:.0f} s ago, {newest.phase}"


def _silent(snapshot: Snapshot, depths: Depths) -> Iterator[Stall]:
    """Services that stopped sending heartbeats, as long as they hold work or nothing has taken their place."""
    lease = snapshot.lease_seconds
    listed = snapshot.listed
    kinds: tuple[tuple[Role, StallKind], ...] = (("actor", "actor_silent"), ("verifier", "verifier_silent"))
    for role, kind in kinds:
        for one in snapshot.silent(role):
            held = _held(depths, one.id)
            if one not in listed and not held:
                continue
            reason = f"no heartbeat for {one.age_seconds:.0f} s (limit {lease:g} s){f', holds {held}' if held else ''}"
            yield Stall(kind, one.id, reason, f"its work returns to the others by itself; {LOG.format(one.id)}")


def _held(depths: Depths, service: str) -> str:
    tickets = sum(lease.count for lease in depths.leases if lease.holder == service)
    held = [f"{tickets} tickets"] if tickets else []
    held += [f"{q.holders[service]} completions of verify:{q.name}" for q in depths.queues if q.holders.get(service)]
    return " and ".join(held)


# ---------------------------------------------------------------------- services that cannot work

REMEDIES: dict[str, str] = {
    "weights_missing": "mount the learner's weights directory (the run's weights/) on this actor's machine under the "
    "same path; the actor tries again by itself",
    "weights_corrupt": "compare the disks and the network between learner and actor; the learner publishes a damaged "
    "version again, and the actor tries again by itself",
    "weights_unusable": "give this actor the learner's model.path and model settings, then start it again",
    "verifier_errors": "see the errors in its log in logs/{}.log; it tries again by itself",
}


def _in_trouble(snapshot: Snapshot) -> Iterator[Stall]:
    """Live services that say what keeps them from working."""
    for one in snapshot.services:
        if one.trouble and one.alive(snapshot.lease_seconds):
            kind: StallKind = one.trouble if one.trouble in STALL_KINDS else "service_trouble"
            yield Stall(kind, one.id, one.detail or one.trouble, REMEDIES.get(kind, LOG).format(one.id))


def _reissued(depths: Depths) -> Iterator[Stall]:
    for one in depths.most_issued:
        if one.attempt >= OFTEN:
            reason = f"group {one.group_id} was issued {one.attempt} times and never finished"
            reason += f", {one.offered} of {one.n} completions arrived"
            reason += f", now {one.holder} holds it" if one.holder else ""
            remedy = (
                "see how the actors that had it ended, in <run>/logs; a prompt that ends an actor must leave the data"
            )
            yield Stall("ticket_reissued", "tickets", reason, remedy)


def _dead_lettered(depths: Depths) -> Iterator[Stall]:
    if depths.dead_letters and depths.dropped and not depths.passed + depths.failed:
        reason = (
            f"every completion so far was dead-lettered ({depths.dead_letters}), {depths.dropped} groups were dropped"
        )
        yield Stall("all_dead_lettered", "verify", reason, "`sieve deadletter list CONFIG` says why")


# ---------------------------------------------------------------------- work that does not come back


def _edge(snapshot: Snapshot, depths: Depths) -> Iterator[Stall]:
    """The one place that a standing run waits for, walking from the learner up the stream."""
    learners, actors = _working_learners(snapshot, depths), snapshot.alive("actor")
    if not depths.opened:
        yield from _no_version(learners)
        return
    busy = [learner for learner in learners if not learner.waiting_on]
    if busy:
        if all(_waits(actor) for actor in actors):
            yield from _slow_learner(busy)
        return
    if not learners or not all(_waits(learner) for learner in learners):
        return
    for find in _UPSTREAM:
        if found := find(snapshot, depths):
            yield found
            return


def _working_learners(snapshot: Snapshot, depths: Depths) -> list[Heartbeat]:
    """The learner that holds the run, the first rank of several; before it does, those that are starting."""
    learners = snapshot.alive("learner")
    holder = [learner for learner in learners if learner.id == depths.learner]
    return holder or [learner for learner in learners if learner.waiting_on != WAITS_FOR_LEASE]


def _waits(heartbeat: Heartbeat) -> bool:
    return bool(heartbeat.waiting_on) and heartbeat.waiting_seconds >= LONG_WAIT_SECONDS


def _no_version(learners: Iterable[Heartbeat]) -> Iterator[Stall]:
    """Nothing can be sampled before the learner has published something to sample from."""
    for one in learners:
        if one.phase_seconds >= FIRST_STEP_SECONDS:
            reason = (
                f"there is no version to sample from; the learner has been {one.phase} for {one.phase_seconds:.0f} s"
            )
            yield Stall("no_version", one.id, reason, LOG.format(one.id))


def _slow_learner(learners: Iterable[Heartbeat]) -> Iterator[Stall]:
    for one in learners:
        step = one.values.get("step_seconds", 0.0)
        limit = max(LONG_WAIT_SECONDS, SLOW * step) if step else FIRST_STEP_SECONDS
        if one.phase_seconds >= limit:
            reason = f"has been {one.phase} for {one.phase_seconds:.0f} s while the actors wait"
            reason += f" (a step takes {step:.1f} s)" if step else ""
            yield Stall("learner_slow", one.id, reason, LOG.format(one.id))


def _verdict_slow(snapshot: Snapshot, depths: Depths) -> Stall | None:
    """The verify queue whose oldest completion has waited longest, when no verdict comes."""
    if 0 <= depths.judged_seconds < LONG_WAIT_SECONDS:
        return None
    waiting = [queue for queue in depths.queues if queue.waiting and queue.oldest_seconds >= LONG_WAIT_SECONDS]
    oldest: VerifyQueue | None = max(waiting, key=lambda queue: queue.oldest_seconds, default=None)
    if oldest is None:
        return None
    held = f"{oldest.holder} judges" if oldest.holder else "no verifier has taken"
    reason = (
        f"{oldest.waiting} completions wait; {held} one of group {oldest.oldest} since {oldest.oldest_seconds:.0f} s"
    )
    remedy = "lower its deadline in verifier.serve, or start more verifiers"
    where = LOG.format(oldest.holder) if oldest.holder else "see the verifiers' logs in <run>/logs"
    return Stall("verdict_slow", f"verify:{oldest.name}", reason, f"{where}, {remedy}")


def _weights_slow(snapshot: Snapshot, depths: Depths) -> Stall | None:
    """An actor that holds tickets and waits for the files of a version."""
    for one in snapshot.alive("actor"):
        if one.waiting_on.startswith("weights") and _waits(one) and _held(depths, one.id):
            reason = f"holds {_held(depths, one.id)} and has waited for weights for {one.waiting_seconds:.0f} s"
            return Stall(
                "weights_slow", one.id, reason, f"see whether weights/ can be read there; {LOG.format(one.id)}"
            )
    return None


def _ticket_slow(snapshot: Snapshot, depths: Depths) -> Stall | None:
    """The oldest ticket that is held, when no completion comes."""
    oldest: TicketLease | None = max(depths.leases, key=lambda lease: lease.seconds, default=None)
    mean = depths.ticket_seconds
    limit = max(LONG_WAIT_SECONDS, SLOW * mean) if mean else FIRST_TICKET_SECONDS
    if oldest is None or oldest.seconds < limit or 0 <= depths.offered_seconds < LONG_WAIT_SECONDS:
        return None
    reason = (
        f"group {oldest.group_id} has been held by {oldest.holder} for {oldest.seconds:.0f} s, {oldest.offered} of "
        f"{oldest.n} completions arrived"
    )
    remedy = f"{LOG.format(oldest.holder)}; when that actor is ended, another one goes on with the ticket"
    return Stall("ticket_slow", "tickets", reason, remedy)


def _tickets_waiting(snapshot: Snapshot, depths: Depths) -> Stall | None:
    """Tickets that nobody takes though every actor waits."""
    actors = snapshot.alive("actor")
    if not depths.returned + depths.eval_waiting or not all(_waits(actor) for actor in actors):
        return None
    waits = ", ".join(sorted({actor.waiting_on for actor in actors}))
    reason = f"{depths.returned} returned and {depths.eval_waiting} evaluation tickets wait, the actors wait on {waits}"
    return Stall("tickets_waiting", "tickets", reason, "see the actors' logs in <run>/logs")


def _admission(snapshot: Snapshot, depths: Depths) -> Stall | None:
    """What keeps the broker from issuing more, computed as in take.lua."""
    spec = snapshot.spec
    if spec is None or not all(_waits(actor) for actor in snapshot.alive("actor")):
        return None
    if depths.queued_bytes >= spec.max_queued_bytes:
        reason = f"no ticket is granted: {depths.queued_bytes} bytes are queued, limit {spec.max_queued_bytes}"
        remedy = "raise broker.max_queued_bytes above what a step's groups take, then `sieve run CONFIG --resume`"
        return Stall("queued_bytes", "tickets", reason, remedy)
    window = (spec.max_staleness + 1) * spec.groups_per_version
    if depths.oldest_open and depths.issued - depths.oldest_absorbed >= window:
        reason = (
            f"no ticket is granted: group {depths.oldest_open}, the oldest not yet trained, is at the bound of "
            f"schedule.max_staleness = {spec.max_staleness}; {depths.ready} groups are ready, a step takes "
            f"{spec.groups_per_step}"
        )
        return Stall("staleness_bound", "tickets", reason, "`sieve audit CONFIG` says whether a group is lost")
    return None


def _all_waiting(snapshot: Snapshot, depths: Depths) -> Stall | None:
    """The wait of the learner, when every live service has been waiting for long and nothing above says why."""
    learners = _working_learners(snapshot, depths)
    everyone = [*learners, *snapshot.alive("actor"), *snapshot.alive("verifier")]
    if not all(_waits(one) for one in everyone):
        return None
    waits = "; ".join(f"{one.role}-{one.index}: {one.waiting_on}" for one in everyone[:8])
    reason = f"has waited on {learners[0].waiting_on} for {learners[0].waiting_seconds:.0f} s while all others wait too"
    return Stall("all_waiting", learners[0].id, f"{reason} ({waits})", "`sieve audit CONFIG` says whether work is lost")


_UPSTREAM: tuple[Callable[[Snapshot, Depths], Stall | None], ...] = (
    _verdict_slow,
    _weights_slow,
    _ticket_slow,
    _tickets_waiting,
    _admission,
    _all_waiting,
)
"""From the learner up the stream; the first that finds something is the edge."""
