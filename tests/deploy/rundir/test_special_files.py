"""A run directory of somebody else's in which a name stands for no file: refused in one line, and nobody waits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploy.observe.tail import Tail
from deploy.rundir import run_files
from deploy.rundir.schema import check_schema
from deploy.sweeps.results import load as load_results
from deploy.sweeps.runner import read_manifest


@pytest.mark.parametrize("name", ["metrics.jsonl", "audit.json", "run.json", "sweep.json", "results.json"])
def test_a_pipe_in_a_run_directory_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    reader = {
        "metrics.jsonl": lambda: Tail(tmp_path).read(),
        "audit.json": lambda: run_files.audit(tmp_path),
        "run.json": lambda: check_schema(tmp_path),
        "sweep.json": lambda: read_manifest(tmp_path),
        "results.json": lambda: load_results(tmp_path / name),
    }[name]
    (tmp_path / "config.yaml").touch()
    with pytest.raises(run_files.RecordError, match=rf"{name}: is a named pipe"):
        reader()


def test_records_that_are_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "eval.jsonl")
    with pytest.raises(run_files.RecordError, match=r"eval\.jsonl: is a named pipe"):
        list(run_files.lines(tmp_path / "eval.jsonl"))
