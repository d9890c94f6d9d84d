"""`sieve judge`: verdicts on single answers and on files of cases, without Redis or a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


def sieve(*arguments: str, text: str = "") -> tuple[int, list[dict[str, Any]], str]:
    """(exit code, lines of JSON, stderr) of `sieve judge …`."""
    done = subprocess.run(
        [sys.executable, "-m", "sieve", "judge", *arguments],
        input=text, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.slow
def test_one_answer_gets_verdict_reason_and_canonical_form() -> None:
    record = json.dumps({"answer": r"\frac{3}{2}"})
    code, said, _ = sieve("math", "--record", record, "--answer", r"\boxed{1.5}")
    assert (code, said) == (0, [{"verdict": "pass", "reason": "correct", "answer": r"\frac{3}{2}", "detail": ""}])
    code, said, _ = sieve("math", "--record", record, "--answer", "-", text=r"so \boxed{2}")
    assert (code, said[0]["verdict"], said[0]["reason"]) == (0, "fail", "wrong")


def test_a_file_of_cases_keeps_its_order_and_every_line(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    good = [
        {"record": {"answer": "5"}, "answer": r"\boxed{5}"},
        {"verifier": "arithmetic", "record": {"numbers": [1, 2], "target": 3}, "answer": "1+2"},
        {"record": {"answer": 5}, "answer": r"\boxed{5}"},
    ]
    path.write_text("\n".join([json.dumps(good[0]), "{", json.dumps(good[1]), "[]", json.dumps(good[2])]) + "\n")
    code, said, errors = sieve("math", "--cases", str(path))
    assert code == 65
    assert [line["reason"] for line in said[:2]] == ["correct", "malformed_case"]
    assert said[2]["verdict"] == "pass" and said[3]["reason"] == "malformed_case"
    assert (said[4]["verdict"], said[4]["reason"]) == ("error", "malformed_record")
    assert "line 2: not JSON" in errors and "line 4: not an object" in errors


@pytest.mark.slow
def test_what_makes_no_sense_is_refused_in_one_line() -> None:
    for arguments, said in (
        (("math",), "give --record and --answer"),
        (("math", "--record", "{", "--answer", "5"), "--record: not JSON"),
        (("math", "--options", "[1]", "--record", "{}", "--answer", "5"), "not an object"),
        (("maths", "--record", "{}", "--answer", "5"), "did you mean 'math'"),
        (("math", "--cases", "nowhere.jsonl"), "nowhere.jsonl: cannot be read"),
        (("math", "--options", "cpu_seconds: 0", "--record", "{}", "--answer", "5"), "cpu_seconds = 0"),
    ):
        code, lines, errors = sieve(*arguments)
        assert (code, lines, len(errors.splitlines())) == (64, [], 1) and said in errors
