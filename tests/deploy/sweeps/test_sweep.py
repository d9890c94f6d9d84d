"""`sieve sweep` and `sieve eval` for real: cut in the middle, gone on with, nothing done twice, everything reported."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

COUNTDOWN = Path(__file__).parents[3] / "examples" / "countdown"
PATIENCE = 300.0


class Project:
    """`sieve` on one small configuration."""

    def __init__(self, directory: Path, **sections: Any) -> None:
        self.runs = directory / "runs"
        tree = {
            "run": {"name": "trial", "directory": str(self.runs)},
            "model": {"path": str(COUNTDOWN / "base")},
            "data": {"train": str(COUNTDOWN / "train.jsonl"), "eval": str(COUNTDOWN / "eval.jsonl")},
            "broker": {"lease_seconds": 4.0},
            "sampling": {"group_size": 4, "max_new_tokens": 14},
            "schedule": {"steps": 3, "groups_per_step": 8, "checkpoint_every": 2, "max_staleness": 1},
            "evaluation": {"prompts": 4, "samples": 8},
            "learner": {"threads": 1, "optimizer": {"lr": 1e-4}},
            **sections,
        }
        self.config = directory / "trial.yaml"
        self.config.write_text(yaml.safe_dump(tree))
        self.output = directory / "output.txt"

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with open(self.output, "ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "sieve", *arguments], stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def ask(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "sieve", *arguments], capture_output=True, text=True, timeout=PATIENCE,
            check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def sessions(self, run: str) -> list[str]:
        path = self.runs / "trial" / run / "sessions.jsonl"
        return [json.loads(line)["outcome"] for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(("cut", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_sweep_that_was_cut_goes_on_and_does_nothing_twice(tmp_path: Path, cut: signal.Signals, code: int) -> None:
    project = Project(tmp_path)
    words = ["sweep", str(project.config), "--objectives", "alpha=.5", "rloo", "--seeds", "1"]
    process = project.start(*words)
    try:
        second = project.runs / "trial" / "alpha_0.5-s0" / "broker.json"
        deadline = time.monotonic() + PATIENCE
        while not second.exists():
            assert process.poll() is None and time.monotonic() < deadline, project.output.read_text()
            time.sleep(0.1)
        process.send_signal(cut)
        assert process.wait(PATIENCE) == code, project.output.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert ("the same command continues it" in project.output.read_text()) == (cut == signal.SIGINT)
    assert not (project.runs / "trial" / "rloo-s0").exists()

    said = project.ask(*words)
    assert "base, seed 0: finished before" in said and "(continued)" in said
    assert project.sessions("base-s0") == ["finished"]
    assert project.sessions("alpha_0.5-s0")[-1] == project.sessions("rloo-s0")[-1] == "finished"
    assert project.ask(*words).count("finished before") == 3

    for run in ("alpha_0.5-s0", "rloo-s0"):
        path = project.runs / "trial" / run
        assert [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
        audit = json.loads((path / "audit.json").read_text())
        assert (audit["lost"], audit["duplicates"], audit["committed"]) == (0, 0, 24)
        evaluated = [json.loads(line) for line in (path / "eval.jsonl").read_text().splitlines()]
        assert [line["step"] for line in evaluated] == [3]  # the base is evaluated once, in a run of its own

    document = tmp_path / "frontier.md"
    project.ask("report", str(project.runs / "trial"), "--document", str(document))
    told = json.loads((project.runs / "trial" / "report" / "summary.json").read_text())
    assert [point["key"] for point in told["points"]] == ["alpha=0.5", "rloo"]
    assert told["base"]["metrics"]["pass@8"][0] >= told["base"]["metrics"]["pass@1"][0]
    assert "| rloo |" in document.read_text()
    refused = project.ask(*words, "--set", "schedule.steps=4", code=64)
    assert "schedule.steps was 3, now 4" in refused


@pytest.mark.slow
def test_a_study_forces_exactly_the_staleness_that_it_names(tmp_path: Path) -> None:
    project = Project(tmp_path, schedule={"steps": 6, "groups_per_step": 4, "checkpoint_every": 3})
    project.ask("sweep", str(project.config), "--objectives", "rloo", "--staleness", "2", "--correction", "none")
    lines = (project.runs / "trial" / "rloo_2_none-s0" / "metrics.jsonl").read_text().splitlines()
    found = [(json.loads(line)["staleness_mean"], json.loads(line)["staleness_max"]) for line in lines]
    assert found == [(0, 0), (1, 1), (2, 2), (2, 2), (2, 2), (2, 2)]


@pytest.mark.slow
def test_a_checkpoint_is_evaluated_as_the_run_evaluates_its_own(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.ask("run", str(project.config), "--no-view")
    run = project.runs / "trial"
    checkpoint = next(path for path in (run / "checkpoints").iterdir() if path.name == "step-00000003-e0001")
    said = project.ask("eval", str(project.config), "--checkpoint", str(checkpoint), "--no-view")
    assert "base perplexity" in said
    found = json.loads((run / "evaluations" / "trial.step-00000003-e0001" / "report" / "evaluation.json").read_text())
    assert found["prompts"] == 4
    assert sum(sum(row.values()) for row in found["migration"].values()) == 4
    assert found["base_perplexity"]["base"]["all"] > 1
    again = project.ask("eval", str(project.config), "--checkpoint", str(checkpoint), "--no-view")
    assert "finished after" not in again  # what is evaluated is not sampled again
    # The base through the lane of its own: the same prompts and samples as the run's, so nothing is sampled for it.
    own = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    assert found["metrics"]["base"]["pass@1"][0] == pytest.approx(own[0]["pass@1"], abs=1e-6)
    # A directory that holds another model by now is evaluated again: the run's tuned model, then the base in its place.
    model = run / "model"
    project.ask("eval", str(project.config), "--checkpoint", str(model), "--no-view")
    shutil.copy(COUNTDOWN / "base" / "model.safetensors", model / "model.safetensors")
    assert "finished after" in project.ask("eval", str(project.config), "--checkpoint", str(model), "--no-view")
    refused = project.ask("eval", str(project.config), "--checkpoint", str(tmp_path), "--no-view", code=64)
    assert "neither a checkpoint" in refused
