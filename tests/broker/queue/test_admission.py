"""Staleness stays within its bound and nothing is lost or trained twice, in whatever order things happen.

A random schedule of actors, verifiers and a learner (with actors that stop, learners that die between any two arrows,
replaced learners that wake up, and rollbacks) runs against a real Redis. After every move the run is audited, and the
admission rule in Lua is compared with the one in Python.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.errors import Fenced
from broker.queue import admission
from broker.queue.heartbeat import Heartbeat
from broker.queue.wire import Outcome
from broker.settings import BrokerSettings, SamplingSettings, ScheduleSettings
from tests.broker.builders import begin, complete, connect, open_run, verdict

_counter = itertools.count()
MOVES = [
    "take", "offer", "judge", "error", "lease", "train", "publish", "commit", "stop_actor", "learner_dies", "zombie",
    "rollback",
]  # fmt: skip


class World:
    """Two actors, two verifiers, one learner; `move` does one thing that can happen next."""

    def __init__(self, url: str, staleness: int, groups: int, publish_every: int) -> None:
        self.broker = connect(url, f"world{next(_counter)}", verify_attempts=2)
        self.schedule = ScheduleSettings(
            steps=6, groups_per_step=groups, publish_every=publish_every, max_staleness=staleness
        )
        self.spec = open_run(
            self.broker,
            steps=6,
            groups_per_step=groups,
            publish_every=publish_every,
            max_staleness=staleness,
            group_size=2,
        )
        self.hold = begin(self.broker)
        self.broker.publish(self.hold, 0, 0)
        self.replaced = []
        self.tickets: dict[str, list] = {"a0": [], "a1": []}
        self.step = self.committed = self.published = 0
        self.leased: list[str] | None = None
        self.trained: dict[int, list[str]] = {}
        """Groups of each step, of all timelines since the last rollback: a step that is done again has the same."""
        self.aim = staleness
        self.rollbacks = 0

    def beat(self, actor: str, phase: str = "sampling") -> None:
        self.broker.heartbeat(Heartbeat(id=actor, role="actor", phase=phase))

    def move(self, name: str, pick: int) -> None:
        b, actor = self.broker, f"a{pick % 2}"
        if name == "take":
            self.beat(actor)
            before = b.depths()
            grant = b.take(actor, 1 + pick)
            new = [t for t in grant.tickets if t.attempt == 1]
            if grant.waiting_on.startswith(("admission: oldest", "admission: effective")):
                assert not self.rule(b.depths())
            elif new:
                assert before.issued - before.absorbed < (self.aim + 1) * self.schedule.groups_per_version
            for _ in new:
                assert before.issued < self.spec.steps * self.spec.groups_per_step + before.dropped
            self.tickets[actor] += grant.tickets
        elif name == "offer" and self.tickets[actor]:
            ticket = self.tickets[actor].pop(pick % len(self.tickets[actor]))
            b.offer(actor, [complete(ticket, idx, b.version()) for idx in ticket.missing[: 1 + pick % 3]])
            if len(ticket.missing) > 1 + pick % 3:
                b.release(actor, [ticket.group_id])
        elif name in ("judge", "error"):
            outcome: Outcome = "error" if name == "error" and pick % 4 == 0 else "pass"
            works = b.receive("arithmetic", f"v{pick % 2}", 1 + pick, 0)
            b.judge("arithmetic", f"v{pick % 2}", [(work, verdict(outcome)) for work in works])
        elif name == "lease" and self.leased is None and self.step < self.spec.steps:
            self.leased = b.lease(self.hold, self.step + 1, self.spec.groups_per_step)
            if self.leased:
                assert b.lease(self.hold, self.step + 1, self.spec.groups_per_step) == self.leased
                assert self.trained.get(self.step + 1, self.leased) == self.leased
                steps = {number: one.step for number, one in b.versions().items()}
                for group in b.groups(self.leased):
                    sampled = min(steps[v] for m in group.members for v, _, _ in m.completion.spans)
                    found = admission.staleness(self.step, sampled, self.spec.publish_every)
                    assert found <= self.spec.max_staleness, (group.group_id, self.step, sampled)
        elif name == "train" and self.leased:
            self.step += 1
            self.trained[self.step], self.leased = self.leased, None
        elif name == "publish" and self.step - self.published >= self.spec.publish_every:
            self.published = self.step
            # The closed loop, driven by an effective sample size that is as wild as the schedule.
            ess = (pick % 5) / 4
            self.aim = admission.tightened(self.aim, bound=self.schedule.max_staleness, ess=ess, target=0.6)
            b.publish(self.hold, b.version() + 1, self.published, admitted=self.aim)
            assert b.admitted() == self.aim
        elif name == "commit" and self.step > self.committed and pick % 3:  # else it dies before the commit
            b.commit(self.hold, self.step, f"c{self.step}", keep=2)
            self.committed = self.step
        elif name == "stop_actor":
            self.beat(actor, "stopped")
            self.tickets[actor] = []
        elif name == "learner_dies" and pick % 3 == 0:
            self.take_over()
        elif name == "zombie" and self.replaced:
            hold = self.replaced[pick % len(self.replaced)]
            with pytest.raises(Fenced):
                if pick % 3 == 0:
                    b.commit(hold, self.step + 1, "zombie")
                elif pick % 3 == 1:
                    b.publish(hold, b.version() + 1, self.step + 1)
                else:
                    b.lease(hold, self.step + 1, self.spec.groups_per_step)
        elif name == "rollback" and pick == 0 and self.rollbacks < 2:
            self.rollbacks += 1
            self.take_over()
            to = ([0, *b.checkpoints()])[-2:][0]
            b.rollback(self.hold, to, {})
            self.take_over()
            assert not self.hold.opened and self.hold.committed_step == to
            b.publish(self.hold, self.hold.used_version + 1, to)
            self.published = to
            self.trained = {step: group_ids for step, group_ids in self.trained.items() if step <= to}

    def take_over(self) -> None:
        """Another learner begins where the committed checkpoint is, wherever the one before it was."""
        self.replaced.append(self.hold)
        self.hold = begin(self.broker)
        assert self.hold.committed_step == self.committed or not self.hold.opened
        self.step = self.committed = self.hold.committed_step
        self.leased = None

    def rule(self, depths) -> bool:
        oldest = self.broker._redis.zrange(self.broker._key("open"), 0, 0, withscores=True)
        return admission.admits(
            issued=depths.issued, absorbed=depths.absorbed, oldest_open=int(oldest[0][1]) if oldest else None,
            window=admission.window(self.schedule), aim=(self.aim + 1) * self.schedule.groups_per_version,
            queued_bytes=depths.queued_bytes, max_queued_bytes=1 << 20,
        )  # fmt: skip

    def check(self) -> None:
        audit = self.broker.audit()
        assert (audit.lost_groups, audit.lost_completions, audit.duplicates) == (0, 0, 0)
        group_ids = [group_id for group in self.trained.values() for group_id in group]
        assert len(group_ids) == len(set(group_ids))
        assert audit.stale == 0

    def finish(self) -> None:
        """However it went, the run can be brought to its end."""
        for _ in range(200):
            for name in ("take", "offer", "judge", "lease", "train", "publish", "commit"):
                self.move(name, 7)
                self.move(name, 4)
            if self.committed == self.spec.steps:
                break
        audit = self.broker.audit()
        assert audit.committed == self.spec.steps * self.spec.groups_per_step, audit
        assert audit.issued == audit.committed + audit.dropped and audit.bytes == 0
        assert sum(len(group_ids) for group_ids in self.trained.values()) == audit.committed
        self.check()
        self.broker.close()


@pytest.mark.parametrize("publish_every", [1, 2])
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    staleness=st.integers(0, 3),
    groups=st.integers(1, 3),
    moves=st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 7)), min_size=20, max_size=80),
)
def test_any_schedule_keeps_the_bound_and_loses_nothing(redis_url, publish_every, staleness, groups, moves):
    world = World(redis_url, staleness, groups, publish_every)
    for name, pick in moves:
        world.move(name, pick)
        world.check()
    world.finish()


@given(
    issued=st.integers(0, 1000),
    absorbed=st.integers(0, 1000),
    oldest=st.none() | st.integers(0, 1000),
    window=st.integers(1, 99),
)
def test_admission_closes_at_the_window_or_the_cap_and_reopens_when_nothing_is_open(issued, absorbed, oldest, window):
    def admits(queued: int, issued: int = issued, oldest: int | None = oldest) -> bool:
        return admission.admits(
            issued=issued,
            absorbed=absorbed,
            oldest_open=oldest,
            window=window,
            queued_bytes=queued,
            max_queued_bytes=10,
        )

    assert not admits(10)
    assert admits(0, issued=absorbed, oldest=None)
    if admits(0):
        assert issued - absorbed < window


@given(
    admitted=st.integers(-3, 99),
    bound=st.integers(0, 64),
    ess=st.floats(0, 1) | st.just(float("nan")),
    target=st.none() | st.floats(0.01, 1),
)
def test_the_closed_loop_stays_within_the_bound_and_moves_toward_the_target(admitted, bound, ess, target):
    found = admission.tightened(admitted, bound=bound, ess=ess, target=target)
    current = min(max(admitted, 0), bound)
    assert 0 <= found <= bound
    if target is None:
        assert found == bound
    elif ess < target:
        assert found < current or found == 0
    elif ess >= target:
        assert found > current or found == bound
    else:
        assert found == current


@settings(deadline=None)
@given(
    steps_published=st.integers(0, 20),
    publish_every=st.integers(1, 4),
    unpublished=st.integers(0, 3),
    groups=st.integers(1, 5),
    aim=st.integers(0, 6),
    open_groups=st.integers(0, 60),
)
def test_a_window_closed_by_the_closed_loop_always_leaves_the_learner_something_to_do(
    steps_published, publish_every, unpublished, groups, aim, open_groups
):
    """Whatever is open and leased, rule (2) closed means: enough is open for a step, or a version is due."""
    window = (aim + 1) * groups * publish_every
    absorbed, leased = steps_published * publish_every * groups, min(unpublished, publish_every) * groups
    issued = absorbed + leased + open_groups
    closed = not admission.admits(
        issued=issued,
        absorbed=absorbed,
        oldest_open=None,
        window=1 << 30,
        aim=window,
        queued_bytes=0,
        max_queued_bytes=1,
    )
    if closed:
        assert open_groups >= groups or leased >= groups * publish_every


def test_forced_staleness_samples_with_the_version_that_much_older_and_never_blocks(redis_url):
    broker = connect(redis_url, "forced")
    open_run(broker, steps=6, groups_per_step=1, max_staleness=0, forced_staleness=2, group_size=2)
    hold = begin(broker)
    broker.publish(hold, 0, 0)
    found = []
    for step in range(1, 7):
        tickets = broker.take("a", 99).tickets
        assert broker.sampling_version() == tickets[0].version
        broker.offer("a", [complete(ticket, idx, broker.sampling_version()) for ticket in tickets for idx in (0, 1)])
        broker.judge("arithmetic", "v", [(work, verdict()) for work in broker.receive("arithmetic", "v", 9, 0.01)])
        group_ids = broker.lease(hold, step, 1)
        assert group_ids
        found.append(broker.version() - broker.groups(group_ids)[0].oldest)
        broker.publish(hold, step, step)
    assert found == [0, 1, 2, 2, 2, 2]
    broker.close()


def test_a_memory_cap_below_one_checkpoint_of_groups_is_refused_with_the_least_that_works():
    schedule = ScheduleSettings(groups_per_step=64, checkpoint_every=10)
    sampling = SamplingSettings(group_size=8, max_new_tokens=1024)
    with pytest.raises(ValueError, match="max_queued_bytes = 1048576 would deadlock") as caught:
        admission.check(schedule, sampling, BrokerSettings(max_queued_bytes=1 << 20))
    least = int(str(caught.value).split("at least ")[1].split(",")[0])
    admission.check(schedule, sampling, BrokerSettings(max_queued_bytes=least))
