"""The run directory as `sieve run` takes it: one live launcher, nothing overwritten, moved aside only when asked."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.config.load import load
from deploy.rundir.lock import RunDirectory
from deploy.rundir.schema import RunDirectoryError

Write = Callable[[Any], Path]


def test_a_finished_run_is_moved_aside_only_when_asked(tree: dict[str, Any], write: Write) -> None:
    config = load(write(tree), environment={})
    with RunDirectory(config, resume=False, fresh=False) as taken:
        assert yaml.safe_load((taken.path / "config.yaml").read_text())["run"]["name"] == "small"
        with pytest.raises(RunDirectoryError, match=f"alive \\(pid {os.getpid()}\\)"):
            RunDirectory(config, resume=True, fresh=False)
    with pytest.raises(RunDirectoryError, match=r"--resume.*--fresh"):
        RunDirectory(config, resume=False, fresh=False)
    with RunDirectory(config, resume=True, fresh=False):
        pass
    with RunDirectory(config, resume=False, fresh=True) as taken:
        assert taken.moved is not None and (taken.moved / "config.yaml").is_file()
    assert len(list(config.run.directory.iterdir())) == 2


def test_a_run_directory_that_cannot_be_written_is_named(tree: dict[str, Any], write: Write, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    config = load(write(tree), [f"run.directory={file}"], {})
    with pytest.raises(RunDirectoryError, match=r"cannot be written: .*; set run\.directory"):
        RunDirectory(config, resume=False, fresh=False)


def test_a_resumed_run_keeps_its_configuration_until_its_learner_has_accepted_the_new_one(
    tree: dict[str, Any], write: Write
) -> None:
    first = load(write(tree), environment={})
    with RunDirectory(first, resume=False, fresh=False) as taken:
        stored = taken.path / "config.yaml"
    before = stored.stat().st_mtime_ns, stored.read_text()
    with RunDirectory(first, resume=True, fresh=False) as taken:
        taken.settle()
    assert (stored.stat().st_mtime_ns, stored.read_text()) == before
    longer = load(write(tree), ["schedule.steps=99", "learner.optimizer.lr=1e-5", "actor.replicas=3"], {})
    with RunDirectory(longer, resume=True, fresh=False) as taken:
        assert stored.read_text() == before[1]
        taken.settle()
        assert yaml.safe_load(stored.read_text())["schedule"]["steps"] == 99


@pytest.mark.parametrize(
    "change",
    ["learner.objective.alpha=0.25", "schedule.groups_per_step=4", "learner.partition.floor=0.01", "run.seed=7"],
)
def test_what_defines_a_run_cannot_change_with_resume(tree: dict[str, Any], write: Write, change: str) -> None:
    with RunDirectory(load(write(tree), environment={}), resume=False, fresh=False) as taken:
        stored = taken.path / "config.yaml"
    before = stored.read_text()
    with pytest.raises(RunDirectoryError, match=rf"cannot go on with other settings \({change.split('=')[0]} = "):
        RunDirectory(load(write(tree), [change], {}), resume=True, fresh=False)
    assert stored.read_text() == before
