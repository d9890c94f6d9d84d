"""Staleness stays within its bound and nothing is lost or trained twice, whatever order things happen in.

A random schedule of actors, verifiers and a learner (with actors that stop and learners that die between any two
arrows) runs against a real Redis; after every move the run is audited and the admission rule in Lua is held against
its Python twin.
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker import admission
from broker.liveness import Pulse
from broker.settings import BrokerSettings, SamplingSettings, ScheduleSettings
from broker.wire import Outcome
from tests.broker.builders import complete, connect, open_run, verdict

_counter = itertools.count()
MOVES = ["take", "offer", "judge", "error", "lease", "train", "publish", "commit", "stop_actor", "learner_dies"]


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
        self.hold = self.broker.begin("learner")
        self.broker.publish(self.hold, 0, 0)
        self.tickets: dict[str, list] = {"a0": [], "a1": []}
        self.step = self.checkpoint = self.committed = self.published = 0
        self.leased: list[str] | None = None
        self.trained: dict[int, list[str]] = {}
        self.crashes = 0
        self.largest_staleness = 0

    def beat(self, actor: str, phase: str = "sampling") -> None:
        self.broker.heartbeat(Pulse(id=actor, role="actor", phase=phase, since=0))

    def move(self, name: str, pick: int) -> None:
        b, actor = self.broker, f"a{pick % 2}"
        if name == "take":
            self.beat(actor)
            before = b.depths()
            grant = b.take(actor, 1 + pick)
            new = [t for t in grant.tickets if t.attempt == 1]
            if grant.waiting_on.startswith("admission: oldest"):
                assert not self.rule(b.depths())
            for _ in new:
                assert before.issued < self.spec.steps * self.spec.groups_per_step + before.dropped
            self.tickets[actor] += grant.tickets
        elif name == "offer" and self.tickets[actor]:
            ticket = self.tickets[actor].pop(pick % len(self.tickets[actor]))
            b.offer(actor, [complete(ticket, idx, b.version()) for idx in ticket.missing[: 1 + pick % 3]])
            if len(ticket.missing) > 1 + pick % 3:
                b.hand_back(actor, [ticket.gid])
        elif name in ("judge", "error"):
            outcome: Outcome = "error" if name == "error" and pick % 4 == 0 else "pass"
            works = b.receive("arithmetic", f"v{pick % 2}", 1 + pick, 0)
            b.judge("arithmetic", f"v{pick % 2}", [(work, verdict(outcome)) for work in works])
        elif name == "lease" and self.leased is None and self.step < self.spec.steps:
            self.leased = b.lease(self.hold, self.step + 1, self.spec.groups_per_step)
            if self.leased:
                assert b.lease(self.hold, self.step + 1, self.spec.groups_per_step) == self.leased
                now = b.version()
                self.largest_staleness = max([self.largest_staleness] + [now - g.oldest for g in b.groups(self.leased)])
        elif name == "train" and self.leased:
            self.step += 1
            self.trained[self.step], self.leased = self.leased, None
        elif name == "publish" and self.step - self.published >= self.spec.publish_every:
            self.published += self.spec.publish_every
            b.publish(self.hold, b.version() + 1, self.published)
        elif name == "commit" and self.step > self.committed:
            self.checkpoint = self.step
            if pick % 3:  # else it dies between checkpoint and commit
                b.commit(self.hold, self.step)
                self.committed = self.step
        elif name == "stop_actor":
            self.beat(actor, "stopped")
            self.tickets[actor] = []
        elif name == "learner_dies" and pick % 3 == 0:
            self.crashes += 1
            b.heartbeat(Pulse(id="learner", role="learner", phase="stopped", since=0))
            self.hold = b.begin("learner", self.checkpoint)
            b.commit(self.hold, self.checkpoint)
            self.trained = {step: gids for step, gids in self.trained.items() if step <= self.checkpoint}
            self.step, self.committed, self.leased = self.checkpoint, self.checkpoint, None
            if self.published > self.step:  # what was published beyond the checkpoint is of a lost timeline
                self.published = self.step
                b.publish(self.hold, b.version() + 1, self.step)

    def rule(self, depths) -> bool:
        oldest = self.broker._redis.zrange(self.broker._key("open"), 0, 0, withscores=True)
        return admission.admits(
            issued=depths.issued, absorbed=depths.absorbed, oldest_open=int(oldest[0][1]) if oldest else None,
            window=admission.window(self.schedule), queued_bytes=depths.queued_bytes, max_queued_bytes=1 << 20,
        )  # fmt: skip

    def check(self) -> None:
        audit = self.broker.audit()
        assert (audit.lost_groups, audit.lost_completions, audit.duplicates) == (0, 0, 0)
        gids = [gid for group in self.trained.values() for gid in group]
        assert len(gids) == len(set(gids))
        if not self.crashes:
            assert self.largest_staleness <= self.spec.max_staleness
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
        assert sum(len(gids) for gids in self.trained.values()) == audit.committed
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


def test_a_memory_cap_below_one_checkpoint_of_groups_is_refused_with_the_least_that_works():
    schedule = ScheduleSettings(groups_per_step=64, checkpoint_every=10)
    sampling = SamplingSettings(group_size=8, max_new_tokens=1024)
    with pytest.raises(ValueError, match="max_queued_bytes = 1048576 would deadlock") as caught:
        admission.check(schedule, sampling, BrokerSettings(max_queued_bytes=1 << 20))
    least = int(str(caught.value).split("at least ")[1].split(",")[0])
    admission.check(schedule, sampling, BrokerSettings(max_queued_bytes=least))
