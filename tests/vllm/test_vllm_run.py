"""A whole run with actors of two engines that come and go: nothing lost, nothing trained twice."""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("vllm", reason="make test-vllm installs it")

from run_rig import STEPS, Started, runs_in

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
    with urllib.request.urlopen(run.pulses("actor")[pid].metrics_url, timeout=30) as answer:
        return answer.read().decode()


@pytest.mark.slow
def test_vllm_and_torch_actors_take_turns_by_sigterm_and_by_kill_nine(started: Callable[..., Started]) -> None:
    run = started(actor=VLLM)
    run.patience = 1200.0  # vLLM starts in ten seconds, on a machine that does nothing else

    def actor(index: int, engine: str) -> subprocess.Popen[bytes]:
        return run.start("actor", "--index", str(index), "--set", f"actor.engine={engine}")

    broker = run.start("broker")
    services = [run.start("learner"), run.start("verifier")]
    first = actor(0, "vllm")
    run.until_step(2)
    text = metrics(run, first.pid)
    assert 'sieve_actor_update_seconds_count{part="pause"}' in text
    assert 'vllm:generation_tokens_total{engine="0",model_name="policy"}' in text

    torch = actor(1, "torch")  # joins the running job; then the first leaves it
    run.until(lambda: torch.pid in run.pids("actor"), "a second actor")
    run.until_step(4)
    family = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGTERM)
    assert run.wait(first) == 0, run.output()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    run.until_step(5)
    torch.send_signal(signal.SIGTERM)
    assert run.wait(torch) == 0, run.output()

    third = actor(2, "vllm")  # alone, and killed in the middle of its work
    run.until_step(8)
    family = psutil.Process(third.pid).children(recursive=True)
    assert family
    os.kill(third.pid, signal.SIGKILL)
    run.processes.remove(third)
    third.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, "vLLM's processes outlive their actor"

    last = actor(3, "torch")
    assert [run.wait(service) for service in [*services, last]] == [0, 0, 0], run.output()
    assert run.steps() == list(range(1, STEPS + 1))
    broker.send_signal(signal.SIGTERM)
    assert run.wait(broker) == 0, run.output()
    assert "Traceback" not in run.output()
    audit = run.ask("audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr
