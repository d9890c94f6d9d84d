"""A run directory of somebody else's in which a name stands for no file: refused in one line, and nobody waits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.errors import BrokerUnavailable
from broker.runtime.endpoint import read_endpoint
from broker.settings import RunSettings
from deploy.api.start import _holder
from deploy.observe.status import _launcher_lives
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


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "endless"])
def test_addresses_and_locks_that_are_no_files_are_not_opened(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "broker.json")
    make(tmp_path / "run.lock")
    with pytest.raises(BrokerUnavailable, match=r"broker\.json is a (named pipe|device)"):
        read_endpoint(RunSettings(name=tmp_path.name, directory=tmp_path.parent))
    assert not _launcher_lives(tmp_path)
    assert _holder(tmp_path) is None


def test_json_of_endless_depth_is_refused_in_a_line(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "audit.json", "run.json", "sweep.json", "results.json", "eval.jsonl"):
        (tmp_path / name).write_text("[" * 100_000 + "\n")
    (tmp_path / "config.yaml").touch()
    for reader in (
        lambda: Tail(tmp_path).read(),
        lambda: run_files.audit(tmp_path),
        lambda: check_schema(tmp_path),
        lambda: read_manifest(tmp_path),
        lambda: load_results(tmp_path / "results.json"),
        lambda: list(run_files.lines(tmp_path / "eval.jsonl")),
    ):
        with pytest.raises(run_files.RecordError):
            reader()
