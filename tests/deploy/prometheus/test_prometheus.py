"""Scrape targets and alert rules: what Prometheus itself says about them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from broker.queue.heartbeat import Heartbeat
from deploy.observe.exporter import scrape_targets

REPOSITORY = Path(__file__).parents[3]
RULES = REPOSITORY / "deploy" / "prometheus" / "rules.yml"
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


@promtool
def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    config = REPOSITORY / "deploy" / "prometheus" / "prometheus.yml"
    subprocess.run(["promtool", "check", "config", config], check=True, capture_output=True)


@promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", "rules_test.yml"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_series_an_alert_reads_is_exported_by_a_room() -> None:
    rooms = [
        path.read_text()
        for room in ("broker", "actor", "verifier", "learner", "deploy")
        for path in (REPOSITORY / room).rglob("*.py")
    ]
    source = "\n".join(rooms)
    for name in set(re.findall(r"\bsieve_[a-z_]+", "".join(re.findall(r"expr: .*", RULES.read_text())))):
        stem = name.removesuffix("_total").removeprefix("sieve_")
        parts = [stem, stem.removeprefix("learner_"), stem.removeprefix("queue_")]
        assert any(f'"{part}"' in source or f'"sieve_{part}"' in source for part in parts), name


def test_targets_are_grouped_by_role_and_leave_out_who_has_gone() -> None:
    def heartbeat(role: str, port: int, phase: str = "working") -> Heartbeat:
        return Heartbeat.model_validate(
            {"id": f"{role}{port}", "role": role, "phase": phase, "since": 0, "metrics_url": f"http://h:{port}/metrics"}
        )

    services = [
        heartbeat("actor", 2),
        heartbeat("actor", 1),
        heartbeat("learner", 3),
        heartbeat("verifier", 4, "stopped"),
    ]
    assert scrape_targets(services) == [
        {"targets": ["h:1", "h:2"], "labels": {"role": "actor"}},
        {"targets": ["h:3"], "labels": {"role": "learner"}},
    ]
