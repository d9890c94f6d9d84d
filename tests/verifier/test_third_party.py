"""A verifier of another distribution: the example in docs/how-to/verifier.md, installed with pip and served."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.verifier.verifier_rig import Rig, ready, until

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = re.compile(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)


def example() -> dict[str, str]:
    """The files shown in the document: name → text."""
    return dict(EXAMPLE.findall((ROOT / "docs" / "how-to" / "verifier.md").read_text()))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of packages into which pip has installed the example."""
    project, site = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("site")
    for name, text in example().items():
        (project / name).write_text(text)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run(
        [*command, "--target", str(site), str(project)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return site


def environment(site: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}


def test_the_example_is_about_twenty_lines() -> None:
    code = example()["reverse_verifier.py"]
    assert len([line for line in code.splitlines() if line.strip()]) <= 22


@pytest.mark.slow
def test_the_example_is_found_by_name_and_judges(installed: Path) -> None:
    code = (
        "from verifier.protocol import known, make\n"
        "v = make('reverse', {'ignore_case': True})\n"
        "asked = (({'text': 'abc'}, 'CBA'), ({'text': 'abc'}, 'abc'), ({}, 'x'))\n"
        "said = [v.judge(*each).outcome for each in asked]\n"
        "print('reverse' in known(), *said)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(installed), timeout=60, check=True
    )
    assert done.stdout.split() == ["True", "pass", "fail", "error"]


@pytest.mark.slow
def test_the_service_runs_the_example(installed: Path, rig: Rig) -> None:
    broker = rig.open(["cba", "abc", "CBA"], n=3, verifier="reverse", record={"text": "abc"})
    config = rig.config({"reverse": {"options": {"ignore_case": True}}})
    code = (
        "import sys; from verifier.service import VerifierConfig, VerifierService\n"
        "sys.exit(VerifierService(VerifierConfig.model_validate_json(sys.argv[1]), url=sys.argv[2]).run())"
    )
    service = subprocess.Popen(
        [sys.executable, "-c", code, config.model_dump_json(), rig.url],
        env=environment(installed),
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: ready(broker) == 1, 30, "the group is judged")
    finally:
        service.terminate()
        assert service.wait(20) in (0, -15, 143)
    (group,) = broker.groups(broker.lease(rig.epoch, 1, 1) or [])
    said = sorted((m.completion.text, m.verdict.outcome, m.verdict.answer, m.verdict.verifier) for m in group.members)
    assert said == [
        ("CBA", "pass", "cba", "reverse/1"),
        ("abc", "fail", "", "reverse/1"),
        ("cba", "pass", "cba", "reverse/1"),
    ]
