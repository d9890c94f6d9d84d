"""Benchmark of the wall time of an asynchronous job against the same job in lock-step, with slow verification.

The job is the demo's (its model, prompts, groups, schedule; fewer steps, no evaluation), run by the services
themselves, each its own process started from the command line: `sieve broker|learner|actor|verifier CONFIG`.
Lock-step is the same configuration with schedule.max_staleness = 0: the groups of a step are sampled from the newest
weights, and nothing is sampled for the next step before these are published.

The sampling time is measured first: the actor's engine, alone in this process, on one step's groups. Then every verdict
takes that long, and all of a step's may be under way at once (`SlowArithmetic`, which sleeps, as if the verification
ran elsewhere). A step in lock-step thus takes sampling + verification + learning, less the overlap that results from
judging each completion when it ends; asynchronously, it takes the longest of the three. The actor samples in its
default batch of 128.

Times run from the first ticket, when all services are up, to the last step; the start and the export, which are the
same on both sides, are left out.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig
from transformers.utils.logging import disable_progress_bar

from actor.engines.factory import open_engine
from benchmarks.measure import Row, row
from broker.queue.admin_client import AdminClient
from broker.queue.state import RunSpec
from broker.queue.wire import Ticket
from broker.runtime.endpoint import read_endpoint
from deploy.config.tree import Config
from learner.data.prompts import end_tokens, load_tokenizer, read_prompts

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "examples" / "countdown" / "countdown.yaml"
STALENESS = 4
START_SECONDS, STEP_SECONDS = 120.0, 20.0


class JobFailed(RuntimeError):
    """A service failed or was too slow; the message ends with the last lines of its log."""


def measure(rounds: int, steps: int) -> tuple[Row, dict[str, float]]:
    """Seconds of the job of `steps` steps, asynchronous and in lock-step (ratio: times faster), and details."""
    disable_progress_bar()
    sampling = sampling_seconds()
    times: dict[int, list[float]] = {0: [], STALENESS: []}
    details = {"sampling": sampling}
    for number in range(rounds):
        for staleness in (0, STALENESS) if number % 2 else (STALENESS, 0):
            total, lines = _job(f"job-{number}-{staleness}", staleness, steps=steps, seconds=sampling)
            times[staleness].append(total)
            name = "asynchronous" if staleness else "lock-step"
            details[f"learning, {name}"] = statistics.median(map(_learning, lines))
            details[f"staleness, {name}"] = statistics.fmean(line["staleness_mean"] for line in lines)
    faster = row(f"job of {steps} steps, times faster than lock-step", times[0], times[STALENESS], "s", "≥ 1.80")
    return replace(faster, ours=faster.bare, bare=faster.ours), details


def sampling_seconds(rounds: int = 3) -> float:
    """Median seconds that the actor's engine takes for the groups of one step of the job, with the base model."""
    config = Config.model_validate(_settings("sampling", "runs", 0, 1, 0.0))
    tokenizer = load_tokenizer(config.model.path)
    model = AutoConfig.from_pretrained(config.model.path, local_files_only=True, trust_remote_code=False)
    prompts = read_prompts(
        config.data.train, tokenizer, vocabulary=model.vocab_size, longest=model.max_position_embeddings
    )
    size, groups = config.sampling.group_size, config.schedule.groups_per_step
    spec = RunSpec(
        fingerprint="0" * 64,
        seed=0,
        steps=1,
        group_size=size,
        groups_per_step=groups,
        publish_every=1,
        max_staleness=0,
        max_queued_bytes=1 << 30,
        max_new_tokens=config.sampling.max_new_tokens,
        train_prompts=len(prompts),
        eval_prompts=0,
        eos_token_ids=end_tokens(config.model.path, model, tokenizer),
        weights="unused",
    )
    engine = open_engine(config, spec, "bench")
    engine.load(0, config.model.path)
    times = []
    for number in range(rounds + 1):
        start = time.perf_counter()
        for index in range(groups):
            ticket = Ticket(
                group_id=f"{number}:{index}",
                lane="train",
                prompt=index,
                n=size,
                seed=number * groups + index,
                version=0,
                attempt=1,
                missing=tuple(range(size)),
            )
            engine.submit(ticket, prompts[index])
        while engine.in_flight:
            engine.poll(config.actor.offer_seconds)
        times.append(time.perf_counter() - start)
    engine.close()
    return statistics.median(times[1:])


def _learning(line: dict[str, Any]) -> float:
    """The learner's own seconds of a step: without waiting for groups."""
    return float(line["seconds"] - line["seconds_waiting"])


def _job(name: str, staleness: int, *, steps: int, seconds: float) -> tuple[float, list[dict[str, Any]]]:
    """Run the job with verdicts that take `seconds`.

    Returns the seconds from the first ticket to the end of the last step, and the lines of metrics.jsonl, one per
    step. Raises JobFailed.
    """
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "config.yaml"
        settings = _settings(name, directory, staleness, steps, seconds)
        config.write_text(yaml.safe_dump(settings))
        services = _Services(config, Path(directory))
        try:
            services.start("broker", directory=Path(directory) / name)
            for role in ("verifier", "actor", "learner"):
                services.start(role)
            begin = services.await_first_ticket(Config.model_validate(settings))
            services.await_end("learner", STEP_SECONDS * steps)
        finally:
            services.stop()
        path = Path(directory) / name
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    if len(lines) != steps:
        raise JobFailed(f"{len(lines)} steps instead of {steps}")
    return lines[-1]["time"] - begin, lines


def _settings(name: str, directory: str, staleness: int, steps: int, seconds: float) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    del settings["data"]["eval"], settings["evaluation"]
    step = settings["sampling"]["group_size"] * settings["schedule"]["groups_per_step"]
    settings["run"] = {"name": name, "directory": directory}
    settings["schedule"] |= {"steps": steps, "max_staleness": staleness, "checkpoint_every": 10 * steps}
    settings["actor"]["max_batch"] = 128
    settings["learner"]["optimizer"]["warmup_steps"] = 0
    settings["verifier"]["serve"] = {
        "arithmetic": {
            "factory": "benchmarks.slow_verifier:SlowArithmetic",
            "options": {"seconds": seconds},
            "concurrency": step,
            "batch": step,
        }
    }
    return settings


class _Services:
    """The job's processes; `stop` ends those that still run."""

    def __init__(self, config: Path, directory: Path) -> None:
        self.config, self.directory = config, directory
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, role: str, *, directory: Path | None = None) -> None:
        """Start `sieve ROLE CONFIG`; with `directory`, wait until the broker has written its address there."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "sieve", role, str(self.config)]
        with open(self.directory / f"{role}.log", "wb") as log:
            self.processes[role] = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while directory is not None and not (directory / "broker.json").exists():
            self._check(role, deadline)

    def await_first_ticket(self, config: Config) -> float:
        """The Unix time at which the first ticket was issued; the actor is the last service to be ready."""
        endpoint = read_endpoint(config.run)
        if endpoint is None:
            raise JobFailed(f"the broker has gone: {self._last('broker')}")
        broker = AdminClient.connect(config.broker, config.run, url=endpoint.url)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not broker.depths().issued:
                for role in self.processes:
                    self._check(role, deadline)
            return time.time()
        finally:
            broker.close()

    def await_end(self, role: str, seconds: float) -> None:
        """Wait until the process of `role` ends with exit code 0, while all others run."""
        deadline = time.monotonic() + seconds
        while self.processes[role].poll() is None:
            for other in self.processes:
                self._check(other, deadline)
        if self.processes[role].returncode:
            raise JobFailed(f"{role} ended with {self.processes[role].returncode}: {self._last(role)}")

    def _check(self, role: str, deadline: float) -> None:
        time.sleep(0.005)
        code = self.processes[role].poll()
        if code:
            raise JobFailed(f"{role} ended with {code}: {self._last(role)}")
        if time.monotonic() > deadline:
            raise JobFailed(f"{role} is not done in time: {self._last(role)}")

    def _last(self, role: str) -> str:
        return (self.directory / f"{role}.log").read_text(errors="replace")[-600:]

    def stop(self) -> None:
        """End the processes that still run, the broker last."""
        for role in ("learner", "actor", "verifier", "broker"):
            process = self.processes.get(role)
            if process is None or process.poll() is not None:
                continue
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
