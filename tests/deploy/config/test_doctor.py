"""`sieve doctor`: what is there, what is missing, with the remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deploy.cli.main import app
from deploy.config.doctor import Finding, examine
from deploy.config.load import load


def findings(path: Path) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for finding in examine(load(path, environment={}, check="none")):
        found.setdefault(finding.subject, []).append(finding)
    return found


def test_a_sound_configuration_is_fine_in_every_part(tree: dict[str, Any], write: Callable[[Any], Path]) -> None:
    found = findings(write(tree))
    assert set(found) == {"broker", "settings and files", "actor engine", "verifier arithmetic"}
    assert all(finding.fine for part in found.values() for finding in part)
    assert "redis" in found["broker"][0].text.lower() or "valkey" in found["broker"][0].text.lower()


def test_each_missing_part_is_named_with_its_remedy(tree: dict[str, Any], write: Callable[[Any], Path]) -> None:
    tree["model"]["path"] = "/nowhere"
    tree["verifier"] = {
        "serve": {
            "arithmetic": {},
            "unknown": {},
            "lean": {"options": {"backend": "kimina", "url": "http://127.0.0.1:1"}},
        }
    }
    found = findings(write(tree))
    assert not found["settings and files"][0].fine and "/nowhere" in found["settings and files"][0].text
    assert not found["verifier unknown"][0].fine
    assert not found["verifier lean"][0].fine and "start the server" in found["verifier lean"][0].text
    assert found["verifier arithmetic"][0].fine


def test_an_engine_whose_package_is_not_installed_is_named_with_what_to_install(
    tree: dict[str, Any], write: Callable[[Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.config.doctor.find_spec", lambda package: None if package == "vllm" else object())
    tree["actor"] = {"engine": "vllm"}
    (finding,) = findings(write(tree))["actor engine"]
    assert not finding.fine and finding.text == "vllm: vllm not installed; pip install 'sieve-rl[vllm]'"


def test_the_command_says_so_with_its_exit_code(tree: dict[str, Any], write: Callable[[Any], Path]) -> None:
    good = CliRunner().invoke(app, ["doctor", str(write(tree))], standalone_mode=False)
    assert good.return_value == 0 and "MISSING" not in good.output
    tree["model"]["path"] = "/nowhere"
    bad = CliRunner().invoke(app, ["doctor", str(write(tree))], standalone_mode=False)
    assert bad.return_value == 69 and "MISSING" in bad.output
