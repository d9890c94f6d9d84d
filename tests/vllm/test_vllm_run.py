"""A whole run with actors of two engines that come and go: nothing lost, nothing trained twice."""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("vllm.v1", reason="make test-vllm installs it")

from run_rig import Started, runs_in

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
    assert 'sieve_actor_update_seconds_count{part="pause"}' in text
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
    for process in family:  # so that it has tickets in its hands when it dies
        process.send_signal(signal.SIGSTOP)
    with run.broker() as connection:
        run.until(lambda: connection.depths().tickets > 0, "a ticket in the actor's hands")
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
