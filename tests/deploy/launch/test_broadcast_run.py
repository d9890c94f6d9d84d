"""A whole run whose weights are broadcast over gloo, with actors that die and join in the middle of it."""

from __future__ import annotations

import json
import re
import signal
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.deploy.run_rig import Started, runs_in

pytestmark = pytest.mark.slow


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    with runs_in(tmp_path) as make:
        yield make


def figure(run: Started, role: str, name: str) -> float:
    """A figure that the only living service of a role exports (of several, the first's)."""
    heartbeat = next(iter(run.heartbeats(role).values()))
    with urllib.request.urlopen(heartbeat.metrics_url, timeout=30) as answer:
        found = re.search(rf"^{re.escape(name)} (\S+)$", answer.read().decode(), re.M)
    assert found, name
    return float(found[1])


def test_actors_die_and_join_and_every_sample_is_of_exactly_the_weights_it_claims(
    started: Callable[..., Started],
) -> None:
    """In lock-step every sample is current, so that sampler and learner must agree on it to float32's rounding,
    whichever way its weights came."""
    run = started(
        weights={"broadcast": "gloo", "broadcast_seconds": 30},
        schedule={"steps": 10**5, "groups_per_step": 8, "checkpoint_every": 3, "max_staleness": 0},
        learner={"threads": 1, "optimizer": {"lr": 3e-4}},
        evaluation={"prompts": 4, "samples": 8, "every": 7},
    )
    run.patience = 900.0

    def members(count: int) -> None:
        """Until that many actors get a version by broadcast, and for some versions more."""
        run.until(lambda: figure(run, "learner", "sieve_learner_transfer_members") == count, f"{count} members")
        run.until_step(run.steps()[-1] + 4)

    broker = run.start("broker")
    learner, verifier = run.start("learner"), run.start("verifier")
    first, second = (run.start("actor", "--index", str(index)) for index in range(2))
    run.until_step(2)
    members(2)
    before = figure(run, "learner", "sieve_learner_transfer_groups_total")
    first.kill()
    first.wait()
    run.processes.remove(first)
    members(1)
    third = run.start("actor", "--index", "2")
    members(2)
    assert figure(run, "learner", "sieve_learner_transfer_groups_total") >= before + 2
    assert "Traceback" not in run.output()
    assert figure(run, "actor", 'sieve_actor_transfers_total{outcome="received"}') > 0

    for service in (learner, second, third, verifier):
        service.send_signal(signal.SIGTERM)
        assert run.wait(service) == 0, run.output()
    audit = json.loads(run.ask("audit").stdout)
    assert (audit["lost_groups"], audit["lost_completions"], audit["duplicates"]) == (0, 0, 0)
    broker.send_signal(signal.SIGTERM)
    assert run.wait(broker) == 0
    lines = [json.loads(line) for line in (run.run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert all(line["mismatch_staleness"] == 0 and line["mismatch_max"] < 1e-4 for line in lines)
