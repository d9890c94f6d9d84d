"""`sieve run` and the command line for real: whole runs of the Countdown example, small, with everything killed once.

Real Ray, real Redis, real processes. A run that goes on by itself after kill -9 of each role must end with nothing
lost and nothing trained twice; Ctrl-C must leave a run that --resume finishes.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deploy.run_rig import COUNTDOWN, STEPS, Started, runs_in, sound


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    with runs_in(tmp_path) as make:
        yield make


@pytest.mark.slow
def test_kill_nine_of_every_role_is_survived_without_loss(started: Callable[..., Started]) -> None:
    run = started()
    process = run.start("run", "--no-view")
    run.until_step(2)
    for role, step in (("verifier", 4), ("actor", 5), ("learner", 7)):
        for pid in run.pids(role):
            os.kill(pid, signal.SIGKILL)
        run.until_step(step)
    assert run.wait(process) == 0, run.output()
    sound(run)
    assert run.output().count("starting again") >= 3
    assert "Traceback" not in run.output()


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_resume_finishes(started: Callable[..., Started]) -> None:
    steps = 200  # enough that the questions below are asked of a living run
    run = started(schedule={"steps": steps, "groups_per_step": 8, "checkpoint_every": 20, "max_staleness": 2})
    process = run.start("run", "--no-view")
    run.until_step(2)
    targets = json.loads((run.run.path / "prometheus" / "targets.json").read_text())
    assert {group["labels"]["role"] for group in targets} >= {"actor", "learner", "verifier", "launcher"}
    again = run.ask("run", "--resume")
    assert again.returncode == 64 and f"alive (pid {process.pid})" in again.stderr
    assert run.ask("status").returncode == 0
    process.send_signal(signal.SIGINT)
    assert run.wait(process) == 130, run.output()
    reached = run.steps()[-1]
    assert run.account()["committed"] == reached * 8  # the drain checkpointed and committed every step
    assert run.account()["lost"] == 0
    refused = run.ask("run")
    assert refused.returncode == 64 and "--resume" in refused.stderr and "--fresh" in refused.stderr
    assert run.ask("status").returncode == 69

    process = run.start("run", "--no-view", "--resume")
    assert run.wait(process) == 0, run.output()
    sound(run, steps)
    assert run.ask("audit").returncode == 0  # Redis is started on the run's data for the question
    assert run.ask("status").returncode == 0
    sessions = [json.loads(line) for line in (run.run.path / "sessions.jsonl").read_text().splitlines()]
    assert [session["outcome"] for session in sessions] == ["stopped", "finished"]


@pytest.mark.slow
def test_two_learner_ranks_start_again_together_when_one_is_killed(started: Callable[..., Started]) -> None:
    run = started(launch={"ranks": 2})
    process = run.start("run", "--no-view")
    run.until_step(2)
    before = run.pids("learner")
    assert len(before) == 2
    os.kill(before[1], signal.SIGKILL)
    run.until_step(6)
    assert not set(before) & set(run.pids("learner"))
    assert run.wait(process) == 0, run.output()
    sound(run)


@pytest.mark.slow
def test_four_terminals_make_a_system_and_a_second_verifier_takes_part(started: Callable[..., Started]) -> None:
    run = started()
    broker = run.start("broker")
    services = [run.start("learner"), run.start("actor"), run.start("verifier"), run.start("verifier", "--index", "1")]
    run.until_step(2)
    assert len(run.pids("verifier")) == 2
    assert [run.wait(service) for service in services] == [0, 0, 0, 0], run.output()
    assert run.steps() == list(range(1, STEPS + 1))
    audit = run.ask("audit")
    assert audit.returncode == 0 and json.loads(audit.stdout)["committed"] == STEPS * 8
    assert run.ask("deadletter", "list").returncode == 64  # the sub-command comes before CONFIG
    broker.send_signal(signal.SIGTERM)
    assert run.wait(broker) == 0, run.output()


@pytest.mark.slow
def test_a_service_that_cannot_start_ends_the_run_with_its_own_line(
    started: Callable[..., Started], tmp_path: Path
) -> None:
    broken = tmp_path / "model"
    broken.mkdir()
    for file in (COUNTDOWN / "base").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    run = started(model={"path": str(broken)})
    done = run.ask("run", "--no-view")
    assert 64 <= done.returncode <= 78
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("sieve: ") and str(broken) in last
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["status"], 69, "not running"),
        (["audit"], 69, "start one with `sieve run CONFIG`"),
        (["report"], 65, "nothing to report"),
        (["run", "--resume"], 64, "no run to resume"),
        (["run", "--set", "metrics.port=9100"], 64, "metrics.port = 9100"),
        (["run", "--resume", "--fresh"], 64, "give one of them"),
        (["run", "--set", "schedule.stepz=1"], 64, "did you mean schedule.steps?"),
        (["actor", "--set", "broker.connect_seconds=.2"], 69, "broker"),
        (["verifier", "--name", "lean"], 64, "verifier.serve"),
        (["nonsense"], 64, "No such command"),
        (["run", "--nonsense"], 64, "No such option"),
    ],
)
def test_errors_are_one_line_with_the_remedy_and_a_code(
    started: Callable[..., Started], arguments: list[str], code: int, word: str
) -> None:
    done = started().ask(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert word in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert len([line for line in done.stderr.splitlines() if " INFO " not in line]) <= 1, done.stderr


@pytest.mark.slow
def test_a_run_with_adapters_publishes_little_and_ends_with_whole_weights(started: Callable[..., Started]) -> None:
    """In lock-step every sample is current, so that sampler and learner must agree on it to float32's rounding."""
    steps = 4
    run = started(
        model={"path": str(COUNTDOWN / "base"), "lora": {"rank": 8}},
        schedule={"steps": steps, "groups_per_step": 8, "checkpoint_every": 2, "max_staleness": 0},
        learner={"threads": 1, "optimizer": {"lr": 2e-3}},
    )
    broker = run.start("broker")
    services = [run.start("learner"), run.start("actor"), run.start("verifier")]
    assert [run.wait(service) for service in services] == [0, 0, 0], run.output()
    audit = json.loads(run.ask("audit").stdout)
    assert (audit["lost"], audit["duplicates"], audit["committed"]) == (0, 0, steps * 8)
    broker.send_signal(signal.SIGTERM)
    assert run.wait(broker) == 0, run.output()

    lines = [json.loads(line) for line in (run.run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert all(line["mismatch_staleness"] == 0 and line["mismatch_max"] < 1e-4 for line in lines)
    assert {json.loads(line)["version"] for line in (run.run.path / "eval.jsonl").open()} == {0, steps}

    def size(path: Path) -> int:
        return sum(file.stat().st_size for file in path.iterdir())

    whole = size(COUNTDOWN / "base")
    assert size(run.run.path / "weights" / f"v{steps:08d}-e0001") < whole / 5
    assert (run.run.path / "adapter" / "adapter_config.json").exists()
    assert size(run.run.path / "model") == pytest.approx(whole, rel=0.05)
