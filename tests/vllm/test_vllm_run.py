"""Whole runs whose actors, or the servers they sample on, come and go: nothing lost, nothing trained twice."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("vllm.v1", reason="make test-vllm installs it")

from tests.deploy.run_rig import COUNTDOWN, Started, runs_in, sound
from tests.vllm.vllm_server import VllmServer

VLLM = {
    "engine": "vllm",
    "max_batch": 32,
    "vllm": {"arguments": {"enforce_eager": True, "kv_cache_memory_bytes": 64 << 20, "max_model_len": 64}},
}


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    with runs_in(tmp_path) as make:
        yield make


def metrics(run: Started, pid: int) -> str:
    with urllib.request.urlopen(run.heartbeats("actor")[pid].metrics_url, timeout=30) as answer:
        return answer.read().decode()


@pytest.mark.slow
def test_vllm_and_torch_actors_come_and_go_by_sigterm_and_by_kill_nine(started: Callable[..., Started]) -> None:
    schedule = {"steps": 10**5, "groups_per_step": 8, "checkpoint_every": 3, "max_staleness": 2}
    run = started(actor=VLLM, schedule=schedule)
    run.patience = 1200.0  # vLLM starts in ten seconds, on a machine that does nothing else

    def actor(index: int, engine: str) -> subprocess.Popen[bytes]:
        return run.start("actor", "--index", str(index), "--set", f"actor.engine={engine}")

    def three_more_steps() -> None:
        run.until_step(run.steps()[-1] + 3)

    broker = run.start("broker")
    learner, verifier = run.start("learner"), run.start("verifier")
    first = actor(0, "vllm")
    run.until_step(2)
    text = metrics(run, first.pid)
    for part in ("fetch", "verify", "check", "pause", "load"):
        assert f'sieve_actor_update_seconds_count{{part="{part}"}}' in text
    assert 'vllm:generation_tokens_total{engine="0",model_name="policy"}' in text

    second = actor(1, "torch")  # joins the running job; then the first leaves it
    run.until(lambda: second.pid in run.pids("actor"), "a second actor")
    three_more_steps()
    family = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGTERM)
    assert run.wait(first) == 0, run.output()
    assert not psutil.wait_procs(family, timeout=60)[1]
    three_more_steps()
    second.send_signal(signal.SIGTERM)
    assert run.wait(second) == 0, run.output()

    third = actor(2, "vllm")  # alone, and killed in the middle of its work
    three_more_steps()
    family = psutil.Process(third.pid).children(recursive=True)
    with run.broker() as connection:

        def held() -> bool:
            """Its sampling stands still with a ticket in its hands; else it goes on, to be stopped elsewhere."""
            for process in family:
                process.send_signal(signal.SIGSTOP)
            time.sleep(0.5)  # what it had sampled leaves its hands
            if connection.depths().tickets > 0:
                return True
            for process in family:
                process.send_signal(signal.SIGCONT)
            return False

        run.until(held, "a ticket in the actor's hands")
    third.kill()
    run.processes.remove(third)
    third.wait()
    for process in family:
        process.send_signal(signal.SIGCONT)
    assert family and not psutil.wait_procs(family, timeout=60)[1], "vLLM's processes outlive their actor"

    last = actor(3, "torch")
    three_more_steps()
    for service in (learner, last, verifier):
        service.send_signal(signal.SIGTERM)
        assert run.wait(service) == 0, run.output()
    asked = run.ask("audit")
    assert asked.returncode == 0, asked.stdout + asked.stderr
    audit = json.loads(asked.stdout)
    assert (audit["lost_groups"], audit["lost_completions"], audit["duplicates"]) == (0, 0, 0)
    assert audit["committed"] >= 14 * 8 and audit["reissued"] > 0
    assert run.steps() == list(range(1, len(run.steps()) + 1))
    assert "Traceback" not in run.output()
    broker.send_signal(signal.SIGTERM)
    assert run.wait(broker) == 0, run.output()


@pytest.mark.slow
def test_without_learning_the_mismatch_stays_flat(started: Callable[..., Started]) -> None:
    """Every version at learning rate 0 is the same weights: in lock-step each is loaded before its step's samples."""
    schedule = {"steps": 16, "groups_per_step": 8, "checkpoint_every": 8, "max_staleness": 0}
    run = started(actor=VLLM, schedule=schedule, learner={"threads": 1, "optimizer": {"lr": 0.0}})
    run.patience = 1200.0
    process = run.start("run", "--no-view")
    assert run.wait(process) == 0, run.output()
    sound(run, 16)
    lines = [json.loads(line) for line in (run.run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["staleness_max"] for line in lines] == [0] * 16
    assert max(line["mismatch_max"] for line in lines) < 1e-4
    means = [line["mismatch_mean"] for line in lines]
    assert 0 < sum(means[8:]) < 3 * sum(means[:8])
    canaries = [line["canary_max"] for line in lines if "canary_max" in line]
    assert canaries and max(canaries) < 1e-4


@pytest.mark.slow
def test_a_run_goes_on_when_the_server_it_samples_on_is_killed_and_started_again(
    started: Callable[..., Started], tmp_path: Path
) -> None:
    server = VllmServer(COUNTDOWN / "base", tmp_path / "server.txt")
    try:
        server.start()
        run = started(
            actor={"engine": "openai", "max_batch": 32, "openai": {"urls": [server.url], "outage_seconds": 1200}}
        )
        run.patience = 1200.0
        process = run.start("run", "--no-view")
        run.until_step(3)
        server.kill()
        server.start()
        assert run.wait(process) == 0, run.output()
        sound(run)
        assert "Traceback" not in run.output()
        # The server was back in time: its actor waited for it and is the one that began.
        assert "starting again" not in run.output()
    finally:
        server.kill()
