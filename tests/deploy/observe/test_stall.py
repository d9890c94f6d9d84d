"""The diagnosis: which stalls a snapshot has, what each says, and that a run that moves has none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.observe.diagnosis import diagnose
from deploy.observe.snapshot import Snapshot
from deploy.observe.stall import LASTING_SECONDS, MEANING, STALL_KINDS, LastingStalls, Stall
from tests.deploy.observe.snapshots import ALL, NOW, depths, heartbeat


def test_a_run_that_moves_has_no_stall() -> None:
    assert diagnose(Snapshot(NOW, depths(ready=3, verify={"arithmetic": 9}), ALL)) == []


def test_a_finished_run_without_services_has_no_stall() -> None:
    assert diagnose(Snapshot(NOW, depths(finished=True), [])) == []


def test_nothing_is_diagnosed_before_the_first_probe() -> None:
    assert diagnose(Snapshot(0.0)) == []


@pytest.mark.parametrize(
    ("role", "more", "kind", "queue", "command"),
    [
        ("learner", {"ready": 5}, "no_learner", "ready", "sieve learner CONFIG"),
        ("learner", {"opened": False}, "run_not_opened", "run", "sieve learner CONFIG"),
        ("actor", {"returned": 2}, "no_actor", "tickets", "sieve actor CONFIG"),
        (
            "verifier",
            {"verify": {"arithmetic": 7}},
            "no_verifier",
            "verify:arithmetic",
            "sieve verifier CONFIG --name arithmetic",
        ),
    ],
)
@pytest.mark.parametrize("gone", ["absent", "silent", "stopped"])
def test_a_queue_without_a_live_service_is_named_with_the_command_that_serves_it(
    role: str, more: dict[str, Any], kind: str, queue: str, command: str, gone: str
) -> None:
    services = [found for found in ALL if found.role != role]
    if gone == "silent":
        services.append(heartbeat(role, age=11.0))
    if gone == "stopped":
        services.append(heartbeat(role, phase="stopped"))
    (stall,) = diagnose(Snapshot(NOW, depths(**more), services))
    assert (stall.kind, stall.queue, stall.remedy) == (kind, queue, f"start `{command}`")


def test_a_queue_that_the_living_verifier_does_not_serve_is_named() -> None:
    services = [heartbeat("actor"), heartbeat("learner"), heartbeat("verifier", queues=("arithmetic",))]
    assert diagnose(Snapshot(NOW, depths(verify={"arithmetic": 4, "lean": 0}), services)) == []
    (stall,) = diagnose(Snapshot(NOW, depths(verify={"arithmetic": 4, "lean": 9}), services))
    assert stall == Stall(
        "no_verifier",
        "verify:lean",
        "no live verifier serves this queue, 9 completions wait",
        "start `sieve verifier CONFIG --name lean`",
    )
    services.append(heartbeat("verifier", queues=("lean", "math")))
    assert diagnose(Snapshot(NOW, depths(verify={"arithmetic": 4, "lean": 9}), services)) == []


def test_what_the_caller_starts_by_itself_is_no_command_for_a_person() -> None:
    snapshot = Snapshot(NOW, depths(verify={"lean": 9, "code": 9}), [heartbeat("actor")])
    remedies = {stall.queue: stall.remedy for stall in diagnose(snapshot, {"ready", "verify:lean"})}
    assert remedies["verify:code"] == "start `sieve verifier CONFIG --name code`"
    assert (
        remedies["ready"]
        == remedies["verify:lean"]
        == "it is being started; if that takes long, see its log in <run>/logs"
    )


def test_every_missing_service_is_a_stall_of_its_own() -> None:
    found = diagnose(Snapshot(NOW, depths(ready=1, verify={"b": 2, "a": 1}), [heartbeat("verifier", age=99.0)]))
    assert [(stall.kind, stall.queue) for stall in found] == [
        ("no_learner", "ready"),
        ("no_actor", "tickets"),
        ("no_verifier", "verify:a"),
        ("no_verifier", "verify:b"),
    ]


def test_a_service_that_fell_silent_is_named_until_its_work_has_long_been_given_back() -> None:
    def silent(age: float) -> Snapshot:
        return Snapshot(NOW, depths(), [*ALL, heartbeat("actor", age=age, name="actor-1", index=1)])

    (stall,) = diagnose(silent(11.0))
    assert (stall.kind, stall.queue) == ("actor_silent", "actor-1")
    assert "11 s (limit 10 s)" in stall.reason and "logs/actor-1.log" in stall.remedy
    assert diagnose(silent(9.0)) == [] and diagnose(silent(101.0)) == []


def test_services_that_all_wait_for_long_are_named_with_what_they_wait_for() -> None:
    services = [
        heartbeat(role, waiting_on=reason, seconds=60)
        for role, reason in (("actor", "admission"), ("learner", "ready groups"), ("verifier", "verify queue"))
    ]
    found = diagnose(Snapshot(NOW, depths(), services))
    assert [(stall.kind, stall.queue) for stall in found] == [("all_waiting", "learner-0-host-1-abc")]
    assert "ready groups for 60 s" in found[0].reason and "actor-0: admission" in found[0].reason
    services[0] = heartbeat("actor")
    assert diagnose(Snapshot(NOW, depths(), services)) == []


@pytest.mark.parametrize(
    ("error", "reason", "remedy"),
    [
        ("refused; start it", "refused", "start it"),
        ("broker: closed; said twice; set broker.url", "closed; said twice", "set broker.url"),
        ("closed", "cannot be asked", "closed"),
    ],
)
def test_an_unreachable_broker_is_the_only_stall(error: str, reason: str, remedy: str) -> None:
    assert diagnose(Snapshot(NOW, error=error, cause="refused")) == [Stall("broker_refused", "broker", reason, remedy)]


def test_a_corpse_that_was_replaced_is_named_only_while_it_holds_work() -> None:
    corpse = heartbeat("actor", age=40.0, name="actor-dead")
    held = {
        "holder": "actor-dead",
        "group_id": "0:1",
        "lane": "train",
        "attempt": 1,
        "n": 2,
        "offered": 1,
        "seconds": 9,
    }
    assert diagnose(Snapshot(NOW, depths(), [*ALL, corpse])) == []
    assert corpse not in Snapshot(NOW, depths(), [*ALL, corpse]).listed
    (stall,) = diagnose(Snapshot(NOW, depths(leases=[held | {"count": 3}]), [*ALL, corpse]))
    assert (stall.kind, stall.queue) == ("actor_silent", "actor-dead") and "holds 3 tickets" in stall.reason


def test_only_living_actors_sample_tokens() -> None:
    rates = [heartbeat("actor", age=age).model_copy(update={"values": {"tokens_per_second": 10.0}}) for age in (1, 11)]
    assert Snapshot(NOW, depths(), rates).tokens_per_second == 10.0


def test_every_kind_of_stall_has_a_meaning() -> None:
    assert tuple(MEANING) == STALL_KINDS


def test_every_kind_of_stall_raises_exactly_one_alert() -> None:
    rules = yaml.safe_load((Path(__file__).parents[3] / "deploy/prometheus/rules.yml").read_text())
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    patterns = [found[1] for text in expressions if (found := re.search(r'sieve_stalls\{kind=~"([^"]+)"\}', text))]
    for kind in STALL_KINDS:
        assert sum(re.fullmatch(pattern, kind) is not None for pattern in patterns) == 1, kind


def test_a_stall_as_text_is_one_line_with_place_reason_and_remedy() -> None:
    stall = Stall("no_verifier", "verify:lean", "no live verifier", "start one")
    assert str(stall) == "verify:lean: no live verifier; start one"


def test_only_stalls_without_a_break_count_as_lasting() -> None:
    lasting = LastingStalls()
    lean, code = (Stall("no_verifier", f"verify:{name}", "9 wait", "start it") for name in ("lean", "code"))
    more = Stall("no_verifier", "verify:lean", "12 wait", "start it")
    assert lasting.update([lean], 100.0) == []
    assert lasting.update([more, code], 99.0 + LASTING_SECONDS) == []
    assert lasting.update([more, code], 100.0 + LASTING_SECONDS) == [more]  # the same one, though its numbers changed
    assert lasting.update([], 101.0 + LASTING_SECONDS) == []
    assert lasting.update([lean], 102.0 + LASTING_SECONDS) == []
