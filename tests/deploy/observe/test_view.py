"""What a snapshot looks like to a person, and the tail of metrics.jsonl that goes with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from deploy.observe.snapshot import Snapshot
from deploy.observe.stall import Stall
from deploy.observe.tail import Tail
from deploy.observe.view import View, render, summary_line
from learner.step_record import StepRecord
from tests.deploy.observe.snapshots import ALL, NOW, depths, heartbeat

UNSERVED = Stall("no_verifier", "verify:lean", "9 completions wait", "start `sieve verifier CONFIG --name lean`")


def test_the_worst_canary_of_the_live_actors_is_shown() -> None:
    actors = [heartbeat("actor").model_copy(update={"values": {"canary_mismatch": gap}}) for gap in (2e-6, 0.31)]
    gone = heartbeat("actor", age=99.0).model_copy(update={"values": {"canary_mismatch": 7.0}})
    assert Snapshot(NOW, depths(), [*actors, gone, heartbeat("actor")]).canary_mismatch == 0.31
    assert Snapshot(NOW, depths(), ALL).canary_mismatch is None


def test_the_view_shows_progress_queues_services_and_stalls(tmp_path: Path) -> None:
    record = {
        "step": 5, "version": 4, "time": 1.0, "seconds": 2.0, "pass_rate": 0.25, "staleness_mean": 1.5,
        "staleness_max": 3, "ess_rho_alpha": 0.9, "mean_r": None,
    }  # fmt: skip
    rows = [{**record, "step": step, "seconds": seconds} for step, seconds in ((3, 60.0), (4, 1.0), (5, 2.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"half')
    tail = Tail(tmp_path)
    snapshot = Snapshot(NOW, depths(tickets=11, verify={"arithmetic": 22}, ready=33, leased=44), ALL)
    console = Console(width=140, record=True)
    console.print(render(snapshot, tail.read(), tail, "name", 20, [UNSERVED], ["something happened"]))
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
        f"stalled: {UNSERVED}",
        "something happened",
    ):
        assert word in text
    said = summary_line(snapshot, tail.read(), tail, 20)
    assert "\n" not in said and "verify 22 → ready 33 → leased 44" in said


def test_the_line_before_the_first_step_says_what_the_services_do(tmp_path: Path) -> None:
    services = [heartbeat("learner", phase="setting up"), heartbeat("actor", waiting_on="version 0")]
    said = summary_line(Snapshot(NOW, depths(), services), None, Tail(tmp_path), 20)
    assert said.startswith("step 0/20  learner-0 setting up; actor-0 working (version 0)  |")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_library_s_own_brackets_in_an_error_are_text_not_markup(terminal: bool) -> None:
    from deploy.cli.main import console

    shown = console()
    shown._force_terminal = terminal
    with shown.capture() as caught, View(shown, "name", 20, Tail(Path("/nowhere")), live=False) as view:
        view.event("learner: [/gloo/tcp/pair.cc:537] Connection closed by peer [red]")
    assert "[/gloo/tcp/pair.cc:537]" in caught.get() and "[red]" in caught.get()


def test_a_view_without_a_terminal_prints_the_line_and_each_stall_once(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=200, record=True)
    with View(console, "name", 20, Tail(Path("/nowhere")), live=True) as view:
        view.update(Snapshot(NOW, depths(), ALL), [UNSERVED])
        view.update(Snapshot(NOW, depths(), ALL), [UNSERVED])  # too soon after the first
        text = console.export_text(clear=False)
        assert text.count("step 0/20") == 1 and text.count(f"stalled: {UNSERVED}\n") == 1
        monkeypatch.setattr("deploy.observe.view.PLAIN_SECONDS", 0.0)
        for stalls in ([UNSERVED], [], [UNSERVED]):
            view.update(Snapshot(NOW, depths(), ALL), stalls)
    text = console.export_text()
    assert text.count("step 0/20") == 4 and text.count(f"stalled: {UNSERVED}\n") == 2  # again after it had ended


def test_the_tail_reads_each_line_once_and_starts_again_after_a_rewrite(tmp_path: Path) -> None:
    path, tail = tmp_path / "metrics.jsonl", Tail(tmp_path)
    assert tail.read() is None
    first, second = (StepRecord(step=step, version=0, time=1.0) for step in (1, 2))
    path.write_text("".join(json.dumps(one.plain()) + "\n" for one in (first, second)))
    assert tail.read() == second and len(tail.recent) == 2
    assert tail.read() == second and len(tail.recent) == 2
    path.write_text(json.dumps(first.plain()) + "\n")
    assert tail.read() == first
