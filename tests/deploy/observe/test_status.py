"""Where a run is stuck, from one look; and what the view says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from broker.queue.heartbeat import Heartbeat
from broker.queue.state import Depths
from deploy.observe.snapshot import Snapshot, Tail, stuck
from deploy.observe.view import View, line, render

NOW = 1000.0


def depths(**more: Any) -> Depths:
    names = {name: 0 for name in Depths.model_fields}
    lists: dict[str, Any] = {"staleness_in_flight": [], "staleness_in_queue": [], "verify": {}}
    return Depths.model_validate({**names, "finished": False, "opened": True, **lists, **more})


def heartbeat(
    role: str, *, age: float = 1.0, waiting_on: str = "", since: float = NOW - 1, phase: str = "working"
) -> Heartbeat:
    return Heartbeat.model_validate(
        {
            "id": f"{role}-0-host-1-abc", "role": role, "phase": phase, "waiting_on": waiting_on, "since": since,
            "age_seconds": age,
        }
    )  # fmt: skip


ALL = [heartbeat("actor"), heartbeat("learner"), heartbeat("verifier")]


def test_a_run_that_moves_is_not_stuck() -> None:
    assert stuck(Snapshot(NOW, depths(ready=3), ALL)) == []


def test_the_worst_canary_of_the_live_actors_is_shown() -> None:
    actors = [heartbeat("actor").model_copy(update={"values": {"canary_mismatch": gap}}) for gap in (2e-6, 0.31)]
    gone = heartbeat("actor", age=99.0).model_copy(update={"values": {"canary_mismatch": 7.0}})
    assert Snapshot(NOW, depths(), [*actors, gone, heartbeat("actor")]).canary_mismatch == 0.31
    assert Snapshot(NOW, depths(), ALL).canary_mismatch is None


def test_a_finished_run_without_services_is_not_stuck() -> None:
    assert stuck(Snapshot(NOW, depths(finished=True), [])) == []


@pytest.mark.parametrize(
    ("role", "more", "edge"),
    [
        ("learner", {"ready": 5}, "group → LEARNER"),
        ("learner", {"opened": False}, "LEARNER → run"),
        ("actor", {"returned": 2}, "ticket → ACTOR"),
        ("verifier", {"verify": {"arithmetic": 7}}, "completion → VERIFIER arithmetic"),
    ],
)
@pytest.mark.parametrize("gone", ["absent", "silent", "stopped"])
def test_the_edge_without_a_live_service_is_named_with_the_remedy(
    role: str, more: dict[str, Any], edge: str, gone: str
) -> None:
    services = [found for found in ALL if found.role != role]
    if gone == "silent":
        services.append(heartbeat(role, age=11.0))
    if gone == "stopped":
        services.append(heartbeat(role, phase="stopped"))
    said = stuck(Snapshot(NOW, depths(**more), services))
    assert len(said) == 1 and said[0].startswith(edge) and "start `sieve " in said[0]


def test_everybody_waiting_for_long_is_stuck_and_names_the_waits() -> None:
    services = [
        heartbeat(role, waiting_on=reason, since=NOW - 60)
        for role, reason in (("actor", "admission"), ("learner", "ready groups"), ("verifier", "verify queue"))
    ]
    said = stuck(Snapshot(NOW, depths(), services))
    assert any("admission for 60 s" in line for line in said) and any("ready groups" in line for line in said)
    services[0] = heartbeat("actor")
    assert stuck(Snapshot(NOW, depths(), services)) == []


def test_an_unreachable_broker_is_the_stuck_edge() -> None:
    assert stuck(Snapshot(NOW, error="refused; start it")) == ["everything → BROKER: refused; start it"]


def test_the_view_shows_progress_queues_and_services(tmp_path: Path) -> None:
    record = {"step": 5, "time": 1.0, "seconds": 2.0, "pass_rate": 0.25, "staleness_mean": 1.5, "staleness_max": 3,
              "ess_rho_alpha": 0.9, "mean_r": None}  # fmt: skip
    rows = [{**record, "step": step, "seconds": seconds} for step, seconds in ((3, 60.0), (4, 1.0), (5, 2.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"half')
    tail = Tail(tmp_path)
    snapshot = Snapshot(NOW, depths(tickets=11, verify={"arithmetic": 22}, ready=33, leased=44), ALL)
    console = Console(width=140, record=True)
    console.print(render(snapshot, tail.read(), tail, "name", 20, ["something happened"]))
    text = console.export_text()
    for word in (
        "step 5/20",
        "0:30 left",
        "0.250",
        "11",
        "arithmetic 22",
        "33",
        "44",
        "learner 0",
        "something happened",
    ):
        assert word in text
    said = line(snapshot, tail.read(), tail, 20)
    assert "\n" not in said and "verify 22 → ready 33 → leased 44" in said


@pytest.mark.parametrize("terminal", [True, False])
def test_a_library_s_own_brackets_in_an_error_are_text_not_markup(terminal: bool) -> None:
    from deploy.cli.main import console

    shown = console()
    shown._force_terminal = terminal
    with shown.capture() as caught, View(shown, "name", 20, Tail(Path("/nowhere")), live=False) as view:
        view.event("learner: [/gloo/tcp/pair.cc:537] Connection closed by peer [red]")
    assert "[/gloo/tcp/pair.cc:537]" in caught.get() and "[red]" in caught.get()


def test_the_tail_reads_each_line_once_and_starts_again_after_a_rewrite(tmp_path: Path) -> None:
    path, tail = tmp_path / "metrics.jsonl", Tail(tmp_path)
    assert tail.read() is None
    path.write_text('{"step": 1}\n{"step": 2}\n')
    assert tail.read() == {"step": 2} and len(tail.recent) == 2
    assert tail.read() == {"step": 2} and len(tail.recent) == 2
    path.write_text('{"step": 1}\n')
    assert tail.read() == {"step": 1}
