"""docs/reference/metrics.md: every exported metric, read from the registries, and the alerts that use it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry

from actor.metrics import ActorMetrics
from broker.runtime.metrics import BaseMetrics
from deploy.observe.exporter import RunMetrics
from docs.generators.markdown import document, prose, table
from learner.metrics import LearnerMetrics
from learner.weights.broadcast import BroadcastMetrics
from verifier.metrics import VerifierMetrics

RULES = Path(__file__).parents[2] / "deploy/prometheus/rules.yml"
INTRODUCTION = """
Every service answers `/metrics` in Prometheus' text format or OpenMetrics, whichever the scraper asks for. Names have
the prefix `sieve_`, base units, and ratios between 0 and 1. Counters end in `_total`; a histogram gives
`_bucket`, `_sum` and `_count`. Label values come from small fixed sets (`role`, `lane`, `verifier`, `outcome`,
`reason`, …), never from data. Scraping adds `role` and `instance`. [Watch a run](../how-to/watch.md) says which ones to
look at first, [Add a metric with an alert](../how-to/metric.md) how to add one.
"""
SERVICES = {
    "Every service": "On the `/metrics` of every role.",
    "Actor": "With `actor.engine: vllm` vLLM's own metrics (`vllm:…`) are on the same page.",
    "Verifier": "",
    "Learner": "The `transfer` metrics are there while weights are broadcast.",
    "Launcher and broker": "On the page of `sieve run` and of `sieve broker`, which look at the run from outside.",
}


def page() -> str:
    """The whole page."""
    alerts = list(_alerts())
    parts = []
    for service, metrics in registries().items():
        rows = []
        for name, kind, labels, text in sorted(metrics):
            exported = f"{name}_total" if kind == "counter" and not name.endswith("_total") else name
            used = [
                alert["alert"]
                for alert in alerts
                if re.search(rf"\b{name}(_total|_bucket|_sum|_count)?\b", alert["expr"])
            ]
            if used:
                text += f" Alert: {', '.join(f'[{alert}](#{alert.lower()})' for alert in used)}."
            rows.append([f"`{exported}`", kind, ", ".join(f"`{label}`" for label in labels), text])
        parts += [f"## {service}"]
        parts += [prose(SERVICES[service])] if SERVICES[service] else []
        parts += [table(["name", "type", "labels", "meaning"], rows)]
    parts += ["## Alerts", "The rules in `deploy/prometheus/rules.yml`; every one names its remedy."]
    for alert in alerts:
        parts += [f"### {alert['alert']}", _alert(alert)]
    return document("Metrics", "the registries and deploy/prometheus/rules.yml", INTRODUCTION, parts)


@cache
def registries() -> dict[str, list[tuple[str, str, list[str], str]]]:
    """(name, type, labels, help) of each service's own metrics, by service; those of every service stand first."""
    base = CollectorRegistry()
    BaseMetrics(base, "actor")
    common = _described(base)
    shared = {name for name, *_ in common}
    found = {"Every service": common}
    actor, verifier, learner, run = (CollectorRegistry() for _ in range(4))
    ActorMetrics(actor)
    VerifierMetrics(verifier, lambda: {"math": 1})
    LearnerMetrics(learner)
    BroadcastMetrics(learner)
    RunMetrics(run)
    own = {"Actor": actor, "Verifier": verifier, "Learner": learner, "Launcher and broker": run}
    for service, registry in own.items():
        found[service] = [entry for entry in _described(registry) if entry[0] not in shared]
    return found


def _described(registry: CollectorRegistry) -> list[tuple[str, str, list[str], str]]:
    """What the registry's collectors say about themselves."""
    labels: dict[str, list[str]] = {}
    for collector in registry._collector_to_names:
        name = getattr(collector, "_name", "")
        if name:
            labels[name] = list(getattr(collector, "_labelnames", ()))
    found = []
    for family in registry.collect():
        seen = labels.get(family.name)
        if seen is None:
            seen = sorted({key for sample in family.samples for key in sample.labels} - {"le"})
        name = f"{family.name}_info" if family.type == "info" else family.name
        if family.type == "info":
            seen = sorted({key for sample in family.samples for key in sample.labels})
        found.append((name, family.type, seen, family.documentation))
    return found


def _alerts() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        yield from (rule for rule in group["rules"] if "alert" in rule)


def _alert(alert: dict[str, Any]) -> str:
    """One alert: severity, condition, remedy."""
    severity, lasting = alert["labels"]["severity"], alert.get("for")
    when = f"Severity {severity}; the condition must hold for {lasting}." if lasting else f"Severity {severity}."
    return f"{when}\n\n```promql\n{alert['expr']}\n```\n\n{prose(alert['annotations']['remedy'])}"
