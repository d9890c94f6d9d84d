"""Every metric that a service exports is found by searching the sources for its whole name."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from actor.metrics import ActorMetrics
from broker.runtime.metrics import BaseMetrics
from deploy.observe.exporter import RunMetrics
from learner.metrics import LearnerMetrics
from learner.weights.broadcast import BroadcastMetrics
from verifier.metrics import VerifierMetrics

ROOT = Path(__file__).parents[1]
PACKAGES = ("actor", "broker", "deploy", "learner", "verifier")


@pytest.fixture(scope="module")
def sources() -> str:
    return "\n".join(file.read_text() for package in PACKAGES for file in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize(
    "metrics", [BaseMetrics, ActorMetrics, LearnerMetrics, BroadcastMetrics, RunMetrics, VerifierMetrics]
)
def test_the_name_stands_whole_in_the_source(metrics: type, sources: str) -> None:
    registry = CollectorRegistry()
    extra: dict[type, object] = {BaseMetrics: "actor", VerifierMetrics: lambda: {"lean": 1}}
    metrics(registry, extra[metrics]) if metrics in extra else metrics(registry)
    names = {family.name for family in registry.collect()}
    from_a_library = {name for name in names if name.startswith("sieve_process_")}
    assert names - from_a_library
    for name in names - from_a_library:
        assert name.startswith("sieve_") and f'"{name}"' in sources, f"{name} is put together from parts"
