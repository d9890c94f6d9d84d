"""Whole runs of the Countdown example from the command line, small: started, watched, accounted for, and ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.queue.heartbeat import Heartbeat
from broker.runtime.endpoint import read_endpoint
from broker.settings import BrokerSettings, RunSettings
from tests.broker.builders import EveryRole

COUNTDOWN = Path(__file__).parents[2] / "examples" / "countdown"
STEPS = 10
PATIENCE = 240.0
"""Seconds for anything that takes seconds on an idle machine."""


class Started:
    """`sieve` commands on one configuration, ended with the test."""

    patience = PATIENCE

    def __init__(self, directory: Path, **sections: Any) -> None:
        self.run = RunSettings(name="t", directory=directory / "runs")
        tree = {
            "run": {"name": "t", "directory": str(self.run.directory)},
            "model": {"path": str(COUNTDOWN / "base")},
            "data": {"train": str(COUNTDOWN / "train.jsonl"), "eval": str(COUNTDOWN / "eval.jsonl")},
            "broker": {"lease_seconds": 4.0},
            "sampling": {"group_size": 4, "max_new_tokens": 14},
            "schedule": {"steps": STEPS, "groups_per_step": 8, "checkpoint_every": 3, "max_staleness": 2},
            "evaluation": {"prompts": 4, "samples": 8},
            "learner": {"threads": 1, "optimizer": {"lr": 1e-4}},
            **sections,
        }
        self.config = directory / "t.yaml"
        self.config.write_text(yaml.safe_dump(tree))
        self.directory = directory
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command, *options = arguments
        with open(self.directory / "output.txt", "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "sieve", command, str(self.config), *options],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd=self.directory,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        self.processes.append(process)
        return process

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command, *options = arguments
        return subprocess.run(
            [sys.executable, "-m", "sieve", command, str(self.config), *options],
            capture_output=True, text=True, timeout=self.patience, check=False, cwd=self.directory,
        )  # fmt: skip

    def output(self) -> str:
        return (self.directory / "output.txt").read_text(errors="replace")

    def steps(self) -> list[int]:
        try:
            lines = (self.run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        return [json.loads(line)["step"] for line in lines if line.endswith("\n")]

    def until(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self.patience
        while not ready():
            ended = [process.args for process in self.processes if process.poll() not in (None, 0)]
            assert not ended, f"{ended} ended while waiting for {what}: {self.output()}"
            assert time.monotonic() < deadline, f"no {what} within {self.patience:g} s: {self.output()}"
            time.sleep(0.2)

    def until_step(self, step: int) -> None:
        self.until(lambda: bool(self.steps()) and self.steps()[-1] >= step, f"step {step}")

    @contextmanager
    def broker(self) -> Iterator[EveryRole]:
        """The run's own, while it is up."""
        endpoint = read_endpoint(self.run)
        assert endpoint is not None
        broker = EveryRole.connect(BrokerSettings(lease_seconds=4.0), self.run, url=endpoint.url)
        try:
            yield broker
        finally:
            broker.close()

    def heartbeats(self, role: str) -> dict[int, Heartbeat]:
        """What the living services of a role say, by process id."""
        with self.broker() as broker:
            alive = [p for p in broker.services() if p.role == role and p.phase != "stopped" and p.age_seconds < 4]
        return {heartbeat.pid: heartbeat for heartbeat in alive}

    def pids(self, role: str) -> list[int]:
        return list(self.heartbeats(role))

    def wait(self, process: subprocess.Popen[bytes]) -> int:
        try:
            return process.wait(self.patience)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{process.args} did not end within {self.patience:g} s: {self.output()}")

    def account(self) -> dict[str, Any]:
        return dict(json.loads((self.run.path / "audit.json").read_text()))


@contextmanager
def runs_in(directory: Path) -> Iterator[Callable[..., Started]]:
    """Makes runs in `directory`; what still runs at the end is killed."""
    runs: list[Started] = []

    def make(**sections: Any) -> Started:
        runs.append(Started(directory, **sections))
        return runs[-1]

    try:
        yield make
    finally:
        for process in [process for run in runs for process in run.processes if process.poll() is None]:
            os.killpg(process.pid, signal.SIGKILL)  # its own session: nobody else's processes are in it
            process.wait()


def sound(run: Started, steps: int = STEPS) -> None:
    """All steps once, nothing lost, nothing trained twice, by the broker's account and by the report's."""
    assert run.steps() == list(range(1, steps + 1))
    audit = run.account()
    assert (audit["lost"], audit["duplicates"]) == (0, 0)
    assert audit["committed"] == audit["issued"] == steps * 8
    done = run.ask("report")
    assert done.returncode == 0, done.stderr
    summary = json.loads((run.run.path / "report" / "summary.json").read_text())
    assert (summary["lost"], summary["duplicates"], summary["groups_trained"]) == (0, 0, steps * 8)
    assert 0 <= summary["base"]["pass@1"] <= 1 and 0 <= summary["tuned"]["pass@1"] <= 1
