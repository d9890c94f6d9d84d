"""The closing line of `make test` counts the tests of both passes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

@pytest.mark.alone
@pytest.mark.parametrize("n", [1, 2])
def test_alone(n):
    assert n < {limit}

@pytest.mark.alone
def test_skipped():
    pytest.skip("not here")

@pytest.mark.parametrize("n", range(4))
def test_beside_others(n):
    pass
"""


@pytest.mark.parametrize(
    ("limit", "codes", "closing"), [(9, [0, 0], "6 passed, 1 skipped"), (2, [1, 0], "1 failed, 5 passed, 1 skipped")]
)
@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.slow
def test_the_second_closing_line_counts_both_passes(
    tmp_path: Path, workers: str, limit: int, codes: list[int], closing: str
) -> None:
    (tmp_path / "test_them.py").write_text(TESTS.format(limit=limit))
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = alone\n")
    python = [sys.executable, "-m", "pytest", "-q", "-p", "tests.totals", "-p", "no:cacheprovider"]
    passes = [
        ["-m", "alone", "--write-reports", "first.json"],
        ["-n", workers, "-m", "not alone", "--add-reports", "first.json"],
    ]
    root = str(Path(__file__).parents[1])
    done = [
        subprocess.run([*python, *options], cwd=tmp_path, env={"PYTHONPATH": root}, capture_output=True, text=True)
        for options in passes
    ]
    assert [run.returncode for run in done] == codes, done
    output = done[1].stdout.splitlines()
    assert output[-1].startswith(closing), done[1].stdout
    assert any(line.startswith("FAILED test_them.py::test_alone[2]") for line in output) == (codes[0] == 1)


def test_without_a_first_pass_there_is_no_second(tmp_path: Path) -> None:
    python = [sys.executable, "-m", "pytest", "-p", "tests.totals", "--add-reports", "first.json"]
    root = str(Path(__file__).parents[1])
    done = subprocess.run(python, cwd=tmp_path, env={"PYTHONPATH": root}, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR and "first.json: no such file" in done.stderr, done
