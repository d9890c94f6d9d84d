"""The Prometheus configuration and the alert rules, checked and evaluated by promtool."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from learner.weights.canary import BOUNDS

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


def test_every_series_an_alert_reads_stands_whole_in_the_source_of_a_service() -> None:
    packages = ("broker", "actor", "verifier", "learner", "deploy")
    source = "\n".join(path.read_text() for package in packages for path in (REPOSITORY / package).rglob("*.py"))
    for name in set(re.findall(r"\bsieve_[a-z_]+", "".join(re.findall(r"expr: .*", RULES.read_text())))):
        assert f'"{name}"' in source or f'"{name.removesuffix("_total")}"' in source, name


def test_the_canary_alert_and_the_document_have_the_learners_bounds() -> None:
    """Three places that cannot read one another: the alert has the loosest bound, the document all of them."""
    alert = re.search(r'canary_mismatch_nats\{statistic="mean"\} > ([\d.]+)', RULES.read_text())
    assert alert is not None and float(alert[1]) == max(BOUNDS.values())
    said = " ".join((REPOSITORY / "docs" / "how-to" / "watch.md").read_text().split())
    for precision, bound in BOUNDS.items():
        assert f"{bound:g} in {precision}" in said
