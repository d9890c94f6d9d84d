"""The arrows of the state machine on a real Redis: what each does, and that repeating it changes nothing."""

from __future__ import annotations

import time

import pytest
import redis

from broker.errors import BrokerError, BrokerFull, BrokerUnavailable, Fenced, RunBusy, RunConflict, RunUnknown
from broker.queue.heartbeat import Heartbeat
from broker.queue.state import Published, VersionName
from broker.queue.wire import WireError, pack
from broker.settings import BrokerSettings, RunSettings
from tests.broker.builders import (
    EveryRole,
    begin,
    complete,
    connect,
    judge_all,
    offer_all,
    open_run,
    prompts,
    spec,
    verdict,
)


@pytest.fixture
def broker(redis_url: str):
    broker = connect(redis_url, lease_seconds=1)
    yield broker
    broker.close()


def beat(broker, id: str, phase: str = "sampling", role: str = "actor") -> None:
    broker.heartbeat(Heartbeat(id=id, role=role, phase=phase))


def start(broker, **change: object):
    """A run whose base is published, and the learner's hold on it."""
    open_run(broker, **change)
    hold = begin(broker)
    broker.publish(hold, 0, 0)
    return hold


def finish_groups(broker, room: int = 100) -> int:
    tickets = broker.take("a", room).tickets
    offer_all(broker, "a", tickets, broker.version())
    judge_all(broker)
    return len(tickets)


def test_a_run_goes_from_tickets_to_commit_and_everything_is_accounted_for(broker):
    run = open_run(broker)
    hold = begin(broker)
    assert broker.take("a", 10).waiting_on == "learner: no version to sample from yet"
    broker.publish(hold, 0, 0)
    for step in range(1, run.steps + 1):
        finish_groups(broker)
        group_ids = broker.lease(hold, step, run.groups_per_step)
        assert group_ids is not None and len(group_ids) == 2
        groups = broker.groups(group_ids)
        assert all(len(group.members) == group.n == 2 for group in groups)
        assert all(m.verdict.outcome == "pass" and m.completion.idx < 2 for g in groups for m in g.members)
        broker.publish(hold, step, step)
        reply = broker.commit(hold, step, "checkpoint", {groups[0].prompt: b"z" * 24})
        assert (reply.groups, reply.duplicates) == (2, 0)
    audit = broker.audit()
    assert audit.issued == audit.committed == run.steps * run.groups_per_step
    assert audit.trained_completions == audit.completions == 2 * audit.issued
    assert (audit.lost, audit.duplicates, audit.open, audit.bytes) == (0, 0, 0, 0)
    assert broker.take("a", 10).waiting_on == "admission: every group of the run is issued"
    assert set(broker.z().values()) == {b"z" * 24}


def test_tickets_visit_every_prompt_once_an_epoch_in_a_shuffled_order(broker):
    start(broker, steps=5, max_staleness=4)
    tickets = broker.take("a", 100).tickets
    assert [ticket.group_id for ticket in tickets] == [f"{k // 5}:{k % 5}" for k in range(10)]
    first, second = [t.prompt for t in tickets[:5]], [t.prompt for t in tickets[5:]]
    assert sorted(first) == sorted(second) == list(range(5)) and first != second
    assert len({ticket.seed for ticket in tickets}) == 10


def test_admission_stops_at_the_window_and_names_the_reason(broker):
    start(broker, max_staleness=1)
    grant = broker.take("a", 100)
    assert len(grant.tickets) == 4  # (1 + 1) versions of 2 groups
    assert grant.waiting_on == "admission: oldest open group at schedule.max_staleness"
    assert not broker.take("b", 100).tickets


def test_a_slow_group_stops_new_tickets_before_it_grows_too_old(broker):
    hold = start(broker, steps=20, max_staleness=1)
    slow, *others = broker.take("a", 100).tickets
    steps = 0
    while True:
        offer_all(broker, "a", others, steps)
        judge_all(broker)
        if broker.lease(hold, steps + 1, 2) is None:
            break
        steps += 1
        broker.publish(hold, steps, steps)
        others = broker.take("a", 100).tickets
    assert steps == 1  # three other groups were enough for one steps; then the pipeline waits for the slow one
    offer_all(broker, "a", [slow], 0)
    judge_all(broker)
    group_ids = broker.lease(hold, steps + 1, 2)
    assert group_ids is not None and slow.group_id in group_ids
    assert steps - broker.groups([slow.group_id])[0].oldest <= 1


def test_queued_bytes_close_admission(broker):
    start(broker, max_queued_bytes=300, max_staleness=100, steps=50)
    finish_groups(broker, room=4)
    assert broker.take("a", 4).waiting_on == "admission: queued bytes at broker.max_queued_bytes"


def test_a_grant_whose_reply_was_lost_is_given_again(broker):
    start(broker)
    arguments = {
        "actor": "a", "room": 4, "token": "token", "groups_per_version": 2, "max_staleness": 1,
        "max_queued_bytes": 1 << 20, "total_groups": 10, "train_prompts": 5, "group_size": 2, "forced_staleness": 0,
    }  # fmt: skip
    first = broker.script("take", **arguments)
    assert broker.script("take", **arguments) == first
    assert broker.audit().issued == len(first) - 2


def test_offering_twice_stores_once(broker):
    start(broker)
    (ticket,) = broker.take("a", 1).tickets
    c = complete(ticket, 0)
    assert broker.offer("a", [c, complete(ticket, 1)]) == ["new", "new"]
    assert broker.offer("a", [c]) == ["duplicate"]
    assert broker.depths().verify == {"arithmetic": 2}
    assert broker.depths().tickets == 0  # fully offered: nobody holds it


def test_a_completion_of_the_wrong_version_is_refused_with_an_error(broker):
    hold = start(broker)
    broker.publish(hold, 3, 0)
    (ticket,) = broker.take("a", 1).tickets
    with pytest.raises(BrokerError, match="sampled with version 2"):
        broker.offer("a", [complete(ticket, 0, version=2)])
    broker.request_eval(hold, 3, 1, 2)
    (ticket,) = broker.take("a", 1).tickets
    with pytest.raises(BrokerError, match="version 4"):
        broker.offer("a", [complete(ticket, 0, version=4)])


def test_a_dead_actors_ticket_goes_to_another_which_samples_only_what_is_missing(broker):
    start(broker)
    (ticket,) = broker.take("a", 1).tickets
    broker.offer("a", [complete(ticket, 1)])
    beat(broker, "b")
    assert not [t for t in broker.take("b", 100).tickets if t.group_id == ticket.group_id]
    time.sleep(1.1)
    beat(broker, "b")
    again = next(t for t in broker.take("b", 1).tickets if t.group_id == ticket.group_id)
    assert (again.attempt, again.missing, again.seed) == (2, (0,), ticket.seed)
    assert broker.offer("a", [complete(ticket, 0)]) == ["stale"]  # the dead actor runs again
    assert broker.offer("b", [complete(again, 0)]) == ["new"]
    assert broker.audit().lost == 0 and broker.depths().reissued == 1


def test_a_clock_that_was_set_back_keeps_the_dead_alive_for_one_lease_only(broker):
    start(broker)
    (ticket,) = broker.take("a", 1).tickets
    beat(broker, "b")
    for name in ("a", "learner"):  # as they stand when Redis's clock has gone back by an hour
        broker._redis.zincrby(broker._key("seen"), 3600, name)
    beat(broker, "b")
    time.sleep(1.1)
    beat(broker, "b")
    again = next(one for one in broker.take("b", 1).tickets if one.group_id == ticket.group_id)
    assert again.attempt == 2 and not next(s for s in broker.services() if s.id == "b").age_seconds > 1
    assert broker.begin("another").number > 1  # the learner's lease is over too


def test_released_tickets_and_those_of_a_stopped_actor_are_reissued_at_once(broker):
    start(broker)
    first, second = broker.take("a", 4).tickets[:2]
    assert broker.release("a", [first.group_id]) == 1
    assert broker.release("a", [first.group_id]) == 0
    assert broker.take("b", 1).tickets[0].group_id == first.group_id
    beat(broker, "a", "stopped")
    assert broker.take("b", 1).tickets[0].group_id == second.group_id


def test_an_error_is_retried_on_another_consumer_then_dead_lettered_and_the_group_closes_short(broker):
    hold = start(broker, groups_per_step=1)
    (ticket,) = broker.take("a", 1).tickets
    offer_all(broker, "a", [ticket])
    for name in ("v1", "v2"):
        beat(broker, name, role="verifier")
    broker.receive("arithmetic", "v2", 1, 0.01)
    # v2 holds one; v1 answers the other with an error: v1 must not see it again while v2 lives.
    (work,) = broker.receive("arithmetic", "v1", 1, 0.01)
    assert broker.judge("arithmetic", "v1", [(work, verdict("error"))]) == ["retry"]
    assert broker.receive("arithmetic", "v1", 1, 0.01) == []
    (again,) = broker.receive("arithmetic", "v2", 10, 0.01)
    assert (again.completion.idx, again.attempt) == (work.completion.idx, 2)
    assert broker.judge("arithmetic", "v2", [(again, verdict("error"))]) == ["retry"]
    beat(broker, "v3", role="verifier")
    (third,) = broker.receive("arithmetic", "v3", 10, 0.01)
    assert broker.judge("arithmetic", "v3", [(third, verdict("error"))]) == ["dead"]
    (letter,) = broker.dead_letters()
    assert (letter.group_id, letter.verifier) == (ticket.group_id, "arithmetic") and letter.verdict.outcome == "error"
    time.sleep(1.1)
    judge_all(broker, "v1")  # what v2 never answered comes back after its lease
    (group,) = broker.groups(broker.lease(hold, 1, 1))
    assert (group.closed_short, len(group.members)) == (1, 1)
    assert broker.audit().lost == 0


def test_a_group_whose_every_completion_is_dead_is_dropped_and_replaced(broker):
    hold = start(broker, steps=1, groups_per_step=1, group_size=1, max_staleness=0)
    (ticket,) = broker.take("a", 1).tickets
    offer_all(broker, "a", [ticket])
    for _ in range(3):
        judge_all(broker, outcome="error")
    audit = broker.audit()
    assert (audit.dropped, audit.dead_letters, audit.lost, audit.bytes) == (1, 1, 0, 0)
    finish_groups(broker)  # a replacement is admitted, so that the run can end
    assert broker.lease(hold, 1, 1) is not None


def test_judging_twice_counts_once(broker):
    start(broker)
    offer_all(broker, "a", broker.take("a", 1).tickets)
    works = broker.receive("arithmetic", "v", 10, 0.01)
    pairs = [(work, verdict()) for work in works]
    assert broker.judge("arithmetic", "v", pairs) == ["done", "done"]
    assert broker.judge("arithmetic", "v", pairs) == ["duplicate", "duplicate"]
    assert broker.depths().passed == 2


def test_work_of_a_dead_verifier_returns_after_the_lease_unless_it_is_refreshed(broker):
    start(broker)
    offer_all(broker, "a", broker.take("a", 1).tickets)
    kept, left = broker.receive("arithmetic", "v1", 10, 0.01)
    end = time.monotonic() + 1.3
    while time.monotonic() < end:
        broker.refresh("arithmetic", "v1", [kept.entry])
        time.sleep(0.1)
    (again,) = broker.receive("arithmetic", "v2", 10, 0.01)
    assert again.entry == left.entry


def test_requeued_work_is_received_again_at_once_with_its_attempts_unchanged(broker):
    start(broker)
    offer_all(broker, "a", broker.take("a", 1).tickets)
    works = broker.receive("arithmetic", "v1", 10, 0.01)
    assert broker.requeue("arithmetic", works) == 2
    broker.leave("arithmetic", "v1")
    again = broker.receive("arithmetic", "v2", 10, 0.01)
    assert sorted(w.completion.idx for w in again) == [0, 1] and {w.attempt for w in again} == {1}


def test_malformed_queue_entries_are_dead_lettered_with_their_reason_and_change_no_group(broker, redis_url):
    start(broker)
    (ticket,) = broker.take("a", 1).tickets
    offer_all(broker, "a", [ticket])
    raw = redis.Redis.from_url(redis_url)
    queue = broker._key("verify:arithmetic")
    raw.xadd(queue, {"g": "0:0", "i": "0", "v": 0, "t": 0, "w": "", "p": b"\xff\xff"})
    raw.xadd(queue, {"nonsense": "1"})
    raw.xadd(queue, {"g": "9:9", "i": "0", "v": 0, "t": 0, "w": "", "p": pack(complete(ticket, 0))})
    assert len(judge_all(broker)) == 2
    reasons = [letter.reason for letter in broker.dead_letters()]
    assert len(reasons) == 3 and all("Completion" in reason for reason in reasons)
    assert broker.depths().verify == {"arithmetic": 0}
    assert broker.audit().lost == 0


def test_an_oversized_completion_is_refused_before_it_is_sent(redis_url):
    broker = connect(redis_url, max_item_bytes=4096)
    start(broker)
    (ticket,) = broker.take("a", 1).tickets
    with pytest.raises(WireError, match="max_item_bytes = 4096"):
        broker.offer("a", [complete(ticket, 0, tokens=1000)])


def test_leasing_the_same_step_again_gives_the_same_groups_oldest_first(broker):
    hold = start(broker, max_staleness=3, steps=20)
    finish_groups(broker, room=4)
    broker.publish(hold, 1, 0)
    finish_groups(broker, room=8)
    group_ids = broker.lease(hold, 1, 3)
    assert group_ids == broker.lease(hold, 1, 3)
    assert [group.oldest for group in broker.groups(group_ids)] == [0, 0, 1]


def test_a_new_learner_fences_the_old_and_does_its_uncommitted_steps_again_with_the_same_groups(broker):
    hold = start(broker, steps=20, max_staleness=3)
    finish_groups(broker)
    first = broker.lease(hold, 1, 2)
    broker.publish(hold, 1, 1)
    broker.commit(hold, 1, "step-1")
    second = broker.lease(hold, 2, 2)
    broker.publish(hold, 2, 2, "identity")
    with pytest.raises(RunBusy, match="learner"):
        broker.begin("learner-2")
    time.sleep(1.1)
    new = broker.begin("learner-2")
    assert (new.number, new.committed_step, new.checkpoint) == (hold.number + 1, 1, "step-1")
    assert (new.version, new.published_step, new.used_version, new.leased_groups) == (2, 2, 2, 2)
    for stale in (
        lambda: broker.lease(hold, 3, 2),
        lambda: broker.commit(hold, 2, "late"),
        lambda: broker.publish(hold, 9, 9),
        lambda: broker.open_run(hold, spec(steps=1), [], []),
        lambda: broker.rollback(hold, 0, {}),
        lambda: broker.finish(hold),
    ):
        with pytest.raises(Fenced):
            stale()
    finish_groups(broker)  # others are ready meanwhile, and older ones are not preferred to those of the step
    assert broker.lease(new, 2, 2) == second and not set(second) & set(first)
    assert broker.run_spec(fresh=True).steps == 20
    audit = broker.audit()
    assert (audit.lost, audit.duplicates, audit.committed_step, audit.checkpoint) == (0, 0, 1, "step-1")


def test_an_epoch_is_above_every_epoch_in_the_names_of_the_runs_files(broker):
    hold = start(broker)
    again = broker.begin("learner", hold.number + 7)
    assert again.number == hold.number + 8
    assert broker.current_epoch() == again.number


def test_a_refused_learner_changes_nothing(broker):
    start(broker, steps=5)
    raw = {key: broker._redis.dump(key) for key in broker._redis.keys("*")}
    with pytest.raises(RunBusy):
        broker.begin("learner-2")
    assert {key: broker._redis.dump(key) for key in broker._redis.keys("*")} == raw


def test_a_checkpoint_that_no_commit_named_does_not_count(broker):
    """A learner that dies, or is paused, between writing the checkpoint of a step and committing it."""
    hold = start(broker, steps=20, max_staleness=3)
    finish_groups(broker)
    group_ids = broker.lease(hold, 1, 2)
    broker.publish(hold, 1, 1)
    time.sleep(1.1)
    new = broker.begin("learner-2")
    assert (new.committed_step, new.checkpoint) == (0, "")
    with pytest.raises(Fenced):
        broker.commit(hold, 1, "of the zombie")
    assert broker.lease(new, 1, 2) == group_ids
    assert broker.commit(new, 1, "of its successor").groups == 2
    assert broker.commit(new, 1, "of its successor").groups == 0
    audit = broker.audit()
    assert (audit.committed, audit.duplicates, audit.checkpoint) == (2, 0, "of its successor")


def test_a_version_number_means_one_set_of_weights_and_versions_never_lose_steps(broker):
    hold = start(broker)
    broker.publish(hold, 1, 3, "a" * 64)
    broker.publish(hold, 1, 3, "a" * 64)  # a lost reply
    with pytest.raises(BrokerError, match="version 1 is not newer"):
        broker.publish(hold, 1, 3, "b" * 64)
    with pytest.raises(BrokerError, match="contains 3 steps"):
        broker.publish(hold, 2, 2, "b" * 64)
    new = broker.begin("learner")
    with pytest.raises(BrokerError, match="version 1 is not newer"):
        broker.publish(new, 1, 4, "b" * 64)
    assert broker.published(1) == Published(VersionName(1, hold.number), 3, "a" * 64)
    assert broker.published(2) is None and sorted(broker.versions()) == [0, 1]


def test_as_many_committed_checkpoints_are_kept_as_asked_for(broker):
    hold = start(broker, steps=20, max_staleness=9)
    for step in range(1, 6):
        finish_groups(broker)
        broker.lease(hold, step, 2)
        broker.publish(hold, step, step)
        broker.commit(hold, step, f"c{step}", keep=2)
    assert broker.checkpoints() == {4: "c4", 5: "c5"}
    lists = [key.decode().rpartition(":")[2] for key in broker._redis.keys(broker._key("lease:*"))]
    assert lists == ["5"]  # all that going back to step 4 would need


@pytest.mark.parametrize("to", [0, 2, 3])
def test_a_rollback_trains_again_what_came_later_and_the_account_is_exact(broker, to):
    run = dict(steps=8, max_staleness=3)
    hold = start(broker, **run)
    for step in range(1, 5):
        finish_groups(broker)
        broker.lease(hold, step, 2)
        broker.publish(hold, step, step)
        broker.commit(hold, step, f"c{step}", {0: bytes([step])}, keep=3)
    finish_groups(broker, room=3)  # ready ones, a leased step, and tickets in an actor's hands
    broker.lease(hold, 5, 2)
    held = broker.take("a", 2).tickets
    broker.request_eval(hold, 4, 2, 2)
    with pytest.raises(RunConflict, match="step 1"):
        broker.rollback(hold, 1, {})
    issued = broker.audit().issued
    reply = broker.rollback(hold, to, {0: b"z"})
    assert reply.untrained == (4 - to) * 2 and reply.discarded == issued - 8
    audit = broker.audit()
    assert (audit.lost, audit.duplicates, audit.bytes, audit.rolled_back) == (0, 0, 0, reply.untrained)
    assert (audit.committed, audit.issued, audit.trained_completions) == (2 * to, 2 * to, 4 * to)
    assert audit.checkpoint == (f"c{to}" if to else "") and broker.z() == {0: b"z"}
    assert broker.eval_open() == {} and audit.again == issued - 2 * to
    assert broker.take("a", 4).waiting_on == "learner: no version to sample from yet"
    assert broker.offer("a", [complete(held[0], 0, 4)]) == ["stale"]
    new = broker.begin("learner")
    assert (new.committed_step, new.opened, new.used_version) == (to, False, 4)
    broker.publish(new, 5, to, "again")
    trained = {}
    for step in range(to + 1, 9):
        finish_groups(broker)
        trained[step] = broker.lease(new, step, 2)
        assert all(group.oldest >= 5 for group in broker.groups(trained[step]))
        broker.publish(new, step + 5, step)
        broker.commit(new, step, f"d{step}", keep=3)
    audit = broker.audit()
    assert (audit.committed, audit.issued, audit.lost, audit.duplicates, audit.again) == (16, 16, 0, 0, 0)
    assert audit.trained_completions == 32 and audit.bytes == 0
    numbers = sorted(group_id for groups in trained.values() for group_id in groups)
    assert len(numbers) == len(set(numbers)) == 16 - 2 * to


def test_base_scores_are_kept_with_their_completion_and_survive_a_new_learner(broker):
    hold = start(broker)
    finish_groups(broker)
    group_ids = broker.lease(hold, 1, 2)
    (first, _) = broker.groups(group_ids)
    data = b"\x00\x00\x80\xbf" * 3
    broker.store_base({(first.group_id, 0): data, ("0:4", 0): data})
    again = broker.groups([first.group_id])[0]
    assert again.members[0].base.tolist() == [-1.0, -1.0, -1.0] and again.members[1].base is None


def test_evaluation_uses_its_own_lane_pinned_to_a_version(broker):
    hold = start(broker)
    broker.request_eval(hold, 0, 3, 4)
    broker.request_eval(hold, 0, 3, 4)
    tickets = broker.take("a", 12).tickets
    assert [(t.group_id, t.lane, t.prompt, t.n, t.version) for t in tickets] == [
        (f"e0:{i}", "eval", i, 4, 0) for i in range(3)
    ]
    offer_all(broker, "a", tickets[:2])
    judge_all(broker)
    assert broker.eval_open() == {0: 1} and broker.eval_ready(0) == ["e0:0", "e0:1"]
    assert broker.depths().ready == 0
    offer_all(broker, "a", tickets[2:])
    judge_all(broker)
    assert [g.prompt for g in broker.groups(broker.eval_ready(0))] == [0, 1, 2]
    broker.eval_done(hold, 0)
    assert broker.eval_open() == {} and broker.audit().bytes == 0
    broker.request_eval(hold, 0, 3, 4)
    assert broker.depths().eval_waiting == 0  # done is done


def test_two_runs_with_one_name_and_other_settings_are_refused(broker):
    open_run(broker)
    with pytest.raises(RunConflict, match="other settings"):
        open_run(broker, fingerprint="0" * 64)
    open_run(broker, steps=9)
    assert broker.run_spec(fresh=True).steps == 9


def test_without_a_learner_the_run_is_unknown(broker):
    with pytest.raises(RunUnknown, match="sieve learner"):
        broker.take("a", 1)


def test_a_finished_run_grants_nothing_and_says_so(broker):
    hold = start(broker)
    assert not broker.finished()
    broker.finish(hold)
    assert broker.finished() and broker.take("a", 1).waiting_on == "run finished"


def test_versions_only_grow(broker):
    hold = start(broker)
    broker.publish(hold, 2, 0)
    broker.publish(hold, 2, 0)
    with pytest.raises(BrokerError, match="not newer"):
        broker.publish(hold, 1, 0)


def test_services_are_listed_with_the_age_of_their_heartbeat(broker):
    beat(broker, "a-1")
    beat(broker, "v-1", "judging", "verifier")
    time.sleep(0.3)
    found = broker.services()
    assert [heartbeat.id for heartbeat in found] == ["a-1", "v-1"] and all(
        0.2 < heartbeat.age_seconds < 2 for heartbeat in found
    )
    beat(broker, "a-1", "stopped")
    assert [heartbeat.id for heartbeat in broker.services()] == ["v-1"]


def test_redis_at_its_memory_limit_is_named_and_judging_still_works(broker, redis_url):
    start(broker, steps=50, max_staleness=50)
    first, second = broker.take("a", 4).tickets
    offer_all(broker, "a", [first])
    raw = redis.Redis.from_url(redis_url)
    before = raw.config_get("maxmemory")["maxmemory"]
    raw.config_set("maxmemory", 1 << 20)
    try:
        with pytest.raises(BrokerFull, match="memory limit"):
            offer_all(broker, "a", [second])
        works = broker.receive("arithmetic", "v", 10, 0.01)
        assert broker.judge("arithmetic", "v", [(w, verdict()) for w in works]) == ["done", "done"]
    finally:
        raw.config_set("maxmemory", before)
    offer_all(broker, "a", [second])
    judge_all(broker)
    assert broker.audit().ready == 2 and broker.audit().lost == 0


@pytest.mark.alone
def test_an_unreachable_redis_is_named_within_its_deadline():
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"broker\.url"):
        EveryRole.connect(BrokerSettings(connect_seconds=1), RunSettings(), url="redis://127.0.0.1:1/0")
    assert time.monotonic() - began < 3


def test_the_specification_and_prompts_survive_the_wire(broker, redis_url):
    run = open_run(broker)
    other = connect(redis_url)
    assert other.run_spec() == run == spec()
    assert other.prompt("train", 3) == prompts(5)[3]
    with pytest.raises(WireError, match="no prompt 9"):
        other.prompt("train", 9)
