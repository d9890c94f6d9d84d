"""Run directories of another release: every command refuses them with both numbers and the remedy; --fresh replaces."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deploy.cli.main import app
from deploy.config.load import load
from deploy.reports.summary import summarize
from deploy.rundir.lock import RunDirectory
from deploy.rundir.run_files import RecordError
from deploy.rundir.schema import SCHEMA, RunDirectoryError, SchemaError, check_schema, mark_schema

Write = Callable[[Any], Path]
BEFORE = f"have schema 1, this release reads schema {SCHEMA}; use the release that wrote them, or start anew"


@pytest.fixture
def old_run(tree: dict[str, Any], tmp_path: Path) -> Path:
    """A run directory as the release before the first schema number left it, with a key since renamed."""
    run = tmp_path / "runs" / "small"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(json.dumps({**tree, "data": {**tree["data"], "held_out": None}}))
    (run / "metrics.jsonl").write_text('{"step": 3, "time": 1.0, "completions": 4}\n')
    return run


def test_a_new_run_is_marked_and_can_be_resumed(tree: dict[str, Any], write: Write) -> None:
    config = load(write(tree), environment={})
    with RunDirectory(config, resume=False, fresh=False) as taken:
        assert json.loads((taken.path / "run.json").read_text()) == {"schema": SCHEMA}
    with RunDirectory(config, resume=True, fresh=False) as taken:
        check_schema(taken.path)


def test_a_learner_that_is_started_by_hand_marks_the_run(tree: dict[str, Any], write: Write, tmp_path: Path) -> None:
    path = write({**tree, "broker": {"connect_seconds": 0.2}})
    done = CliRunner().invoke(app, ["learner", str(path)], standalone_mode=False)
    assert done.return_value == 69  # no broker
    assert json.loads((tmp_path / "runs" / "small" / "run.json").read_text()) == {"schema": SCHEMA}


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--resume", "--no-view"],
        ["run", "--no-view"],
        ["learner"],
        ["status"],
        ["report"],
        ["audit"],
        ["deadletter", "list"],
        ["eval", "--checkpoint", "model"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("by", ["directory", "configuration"])
def test_every_command_refuses_a_run_of_before(
    old_run: Path, tree: dict[str, Any], write: Write, arguments: list[str], by: str
) -> None:
    words = 2 if arguments[0] == "deadletter" else 1
    where = str(old_run) if by == "directory" else str(write(tree))
    if arguments == ["run", "--no-view"] and by == "directory":
        arguments = ["run", "--fresh", "--no-view"]  # the configuration in it cannot be read
    done = CliRunner().invoke(app, [*arguments[:words], where, *arguments[words:]], standalone_mode=False)
    assert isinstance(done.exception, SchemaError), done.output
    said = str(done.exception)
    assert said.startswith(f"{old_run}: ") and BEFORE in said and "\n" not in said
    assert done.exception.exit_code == 65


def test_a_later_schema_is_refused_with_both_numbers(old_run: Path) -> None:
    (old_run / "run.json").write_text('{"schema": 7}')
    with pytest.raises(SchemaError, match=f"have schema 7, this release reads schema {SCHEMA}"):
        summarize(old_run)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": "2"}', "\x00"])
def test_a_marker_that_cannot_be_read_is_named(old_run: Path, text: str) -> None:
    (old_run / "run.json").write_text(text)
    with pytest.raises(RecordError, match=r"run\.json: not of the form"):
        check_schema(old_run)


def test_a_run_of_before_is_moved_aside_by_fresh(old_run: Path, tree: dict[str, Any], write: Write) -> None:
    with RunDirectory(load(write(tree), environment={}), resume=False, fresh=True) as taken:
        assert taken.moved is not None and (taken.moved / "metrics.jsonl").exists()
        assert json.loads((taken.path / "run.json").read_text()) == {"schema": SCHEMA}
        with pytest.raises(SchemaError):
            check_schema(taken.moved)


def test_a_directory_without_a_run_may_have_any_marker(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    (tmp_path / "run.json").write_text('{"schema": 1}')
    check_schema(tmp_path)
    mark_schema(tmp_path)
    assert json.loads((tmp_path / "run.json").read_text()) == {"schema": SCHEMA}


def test_a_directory_that_cannot_be_marked_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"cannot be written: .*; set run\.directory"):
        mark_schema(tmp_path / "file" / "run")
