"""The committed cases: records, answers, the right verdict and why, one JSON object a line in *.jsonl beside this file.

`sieve judge math --cases tests/verifier/cases/math.jsonl` prints the verdicts of the same lines.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from verifier.protocol import Verifier, make

FILES = sorted(Path(__file__).parent.glob("*.jsonl"))


def cases(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@cache
def verifier(name: str) -> Verifier:
    return make(name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_case_gets_its_verdict(path: Path) -> None:
    wrong = []
    for number, case in enumerate(cases(path), 1):
        said = verifier(case["verifier"]).judge(case["record"], case["answer"])
        if said.outcome != case["verdict"]:
            wrong.append(f"line {number}: {case['record']} {case['answer']!r} is {said}, right is {case['verdict']}")
    assert wrong == []


def test_there_are_enough_of_them() -> None:
    counts = {path.stem: len(cases(path)) for path in FILES}
    assert counts["math"] >= 300
    assert counts["python"] >= 120
