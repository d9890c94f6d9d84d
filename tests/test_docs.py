"""What the documents say exists: every metric they name, every file they link to, every command they show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from typer.main import get_command

from actor.metrics import ActorMetrics
from broker.runtime.metrics import BaseMetrics
from deploy.cli.main import app
from learner.metrics import LearnerMetrics

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/*/README.md"))]
RULES = ROOT / "deploy/prometheus/rules.yml"
FROM_SOURCE = re.compile(r'"(sieve_[a-z_]+)"')


def metric_names() -> set[str]:
    """Names that services export: from registries where that is cheap, else the literals in the rooms' sources."""
    registry = CollectorRegistry()
    BaseMetrics(registry, "actor")
    LearnerMetrics(registry)
    ActorMetrics(registry)
    names = {family.name for family in registry.collect()}
    for room in ("actor", "broker", "verifier", "learner", "deploy"):
        for file in (ROOT / room).rglob("*.py"):
            names |= set(FROM_SOURCE.findall(file.read_text()))
    return names


@pytest.mark.parametrize("path", [*DOCUMENTS, RULES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_metric_that_is_named_exists(path):
    known = metric_names()
    for name in set(re.findall(r"\bsieve_[a-z_]+\b", path.read_text())):
        stem = re.sub(r"_(total|bucket|count|sum)$", "", name)
        assert {name, stem} & known, f"{path.name} names {name}, which no service exports"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_that_is_shown_exists(path):
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    for name in re.findall(r"^    sieve ([a-z]+)", path.read_text(), re.M):
        assert name in known, f"{path.name} shows `sieve {name}`"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for name in re.findall(r"^    make ([a-z-]+)", path.read_text(), re.M):
        assert name in targets, f"{path.name} shows `make {name}`"
