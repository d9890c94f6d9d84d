"""`sieve status` on a run in a real Redis: what it prints of a stall, and its exit codes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from broker.queue.heartbeat import Heartbeat, Role
from deploy.config.load import load
from deploy.observe.exporter import Exporter
from deploy.observe.status import status
from deploy.observe.status_report import StatusReport
from deploy.rundir.schema import mark_schema
from tests.broker.builders import EveryRole, begin, connect, offer_all, prompts, spec

Write = Callable[[Any], Path]
UNSAFE = 'actor.vllm.unsafe_arguments.hf_overrides={"rope_theta": 1000.0}'


@pytest.fixture
def broker(redis_url: str) -> EveryRole:
    """A run with prompts of two verifiers, and one completion of each waiting for its verdict."""
    broker = connect(redis_url, "small")
    run = spec(train_prompts=2, eval_prompts=0, group_size=1, groups_per_step=2, unsafe=(UNSAFE,))
    epoch = begin(broker)
    broker.open_run(
        epoch, run, [*prompts(1, "arithmetic"), *(p.model_copy(update={"index": 1}) for p in prompts(1, "lean"))], []
    )
    beat(broker, "learner")
    broker.publish(epoch, 0, 0)
    beat(broker, "actor")
    offer_all(broker, "actor", broker.take("actor", 2).tickets)
    return broker


def beat(broker: EveryRole, role: Role, queues: tuple[str, ...] = ()) -> None:
    broker.heartbeat(Heartbeat(id=role, role=role, phase="working", queues=queues))


def test_a_queue_beside_a_living_verifier_of_another_is_named_with_the_command_that_serves_it(
    broker: EveryRole, tree: dict[str, Any], write: Write, redis_url: str
) -> None:
    config = load(write({**tree, "broker": {"url": redis_url}}), environment={}, check="none")

    def ask() -> tuple[int, str]:
        console = Console(width=200, record=True)
        return status(config, console, watch=False), console.export_text()

    code, text = ask()
    assert code == 75 and text.count("stalled: verify:") == 2
    assert f"unsafe: {UNSAFE}" in text
    beat(broker, "verifier", ("arithmetic",))
    code, text = ask()
    assert code == 75 and text.count("stalled:") == 1
    assert (
        "stalled: verify:lean: no live verifier serves this queue, 1 completions wait; "
        "start `sieve verifier CONFIG --name lean`" in text
    )
    beat(broker, "verifier", ("arithmetic", "lean"))
    code, text = ask()
    assert code == 0 and "stalled" not in text


def test_a_run_that_is_looked_at_from_another_directory_has_the_step_that_the_broker_counts(
    broker: EveryRole, tree: dict[str, Any], write: Write, redis_url: str
) -> None:
    config = load(write({**tree, "broker": {"url": redis_url}}), environment={}, check="none")
    broker.heartbeat(Heartbeat(id="learner", role="learner", phase="training", values={"step": 2.0}))
    console = Console(width=200, record=True)
    status(config, console, watch=False)
    text = console.export_text()
    assert "step 2/20" in text and "holds no metrics.jsonl of it" in text


def test_the_json_is_one_line_that_says_what_the_text_says(
    broker: EveryRole, tree: dict[str, Any], write: Write, redis_url: str
) -> None:
    config = load(write({**tree, "broker": {"url": redis_url}}), environment={}, check="none")
    beat(broker, "verifier", ("arithmetic",))
    console = Console(width=40, record=True)
    assert status(config, console, watch=False, as_json=True) == 75
    found = json.loads(console.export_text())
    assert (found["schema"], found["name"], found["state"], found["cause"]) == (1, "small", "stalled", None)
    assert [(stall["kind"], stall["queue"]) for stall in found["stalls"]] == [("no_verifier", "verify:lean")]
    assert {service["id"]: service["alive"] for service in found["services"]} == dict.fromkeys(
        ("actor", "learner", "verifier"), True
    )
    assert found["depths"]["verify"] == {"arithmetic": 1, "lean": 1} and found["unsafe"] == [UNSAFE]
    StatusReport.model_validate(found)


def test_a_private_run_has_stopped_only_when_its_launcher_has_too(tree: dict[str, Any], write: Write) -> None:
    config = load(write(tree), environment={}, check="none")
    mark_schema(config.run.path)
    (config.run.path / "metrics.jsonl").write_text(json.dumps({"step": 3, "version": 1, "time": 1.0}) + "\n")

    def ask() -> tuple[int, str]:
        console = Console(width=200, record=True)
        return status(config, console, watch=False), console.export_text()

    assert ask() == (69, "small: step 3/20, stopped; continue it with `sieve run CONFIG --resume`\n")
    (config.run.path / "run.lock").write_text(f"{os.getpid()}\n")
    code, text = ask()
    assert code == 69 and "step 3/20 by its metrics.jsonl" in text and "stalled: broker: no broker.url is set" in text
    assert "--resume" not in text and "start sieve broker CONFIG" in text


def test_the_exporter_counts_the_stall_and_shows_it_once_it_has_lasted(
    broker: EveryRole, tree: dict[str, Any], write: Write, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.observe.stall.LASTING_SECONDS", 1.5)
    beat(broker, "verifier", ("arithmetic",))
    config = load(write({**tree, "broker": {"url": redis_url}}), environment={}, check="none")
    exporter = Exporter(config, redis_url, "launcher")
    try:
        deadline = time.monotonic() + 30
        while not exporter.stalls and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [(stall.kind, stall.queue) for stall in exporter.stalls] == [("no_verifier", "verify:lean")]
        assert exporter.registry.get_sample_value("sieve_stalls", {"kind": "no_verifier"}) == 1
        assert exporter.registry.get_sample_value("sieve_queue_verify", {"verifier": "lean"}) == 1
        assert (config.run.path / "prometheus" / "targets.json").exists()
    finally:
        exporter.close()
