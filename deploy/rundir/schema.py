"""The schema number of a run directory, kept in its `run.json`: which release's files these are.

A run directory outlives the processes that wrote it. Its files are read only where its schema is this release's, so
that a renamed key or metric is never taken for a missing one.
"""

from __future__ import annotations

import json
from pathlib import Path

from broker.errors import EX_USAGE, SieveError
from deploy.rundir.run_files import RecordError, opened, write_json

SCHEMA = 3
"""Raised by one whenever a release can no longer read, or would misread, what the previous one wrote into a run
directory: config.yaml, the JSONL files, checkpoints, published weights or the private Redis."""
MARKER = "run.json"
TRACES = ("config.yaml", "metrics.jsonl", "eval.jsonl", "checkpoints", "weights")
"""What a run leaves behind. A directory without any of these holds no run, even if a broker was started in it."""


class RunDirectoryError(SieveError):
    """The run directory cannot be used as asked."""

    exit_code = EX_USAGE


class SchemaError(RecordError):
    """The run directory was written under another schema, by an earlier or later release."""


def traces(run: Path) -> list[str]:
    """Which of TRACES are in the directory `run`; empty when it holds no run."""
    return [name for name in TRACES if (run / name).exists()]


def check_schema(run: Path) -> None:
    """Do nothing where `run` holds a run of SCHEMA, or none at all. Raises SchemaError otherwise."""
    found = _schema_of(run)
    if found is not None and found != SCHEMA:
        raise SchemaError(
            f"{run}: its files have schema {found}, this release reads schema {SCHEMA}; use the release that wrote "
            f"them, or start anew with `sieve run CONFIG --fresh` or another run.name"
        )


def mark_schema(run: Path) -> None:
    """Write SCHEMA into the directory `run` unless it holds a run already; to be called before any of TRACES is made.

    Raises SchemaError where a run of another schema is there, RunDirectoryError where the directory cannot be written.
    """
    check_schema(run)
    if not traces(run):
        try:
            write_json(run / MARKER, {"schema": SCHEMA})
        except OSError as error:
            raise unwritable(run, error) from None


def unwritable(run: Path, error: OSError) -> RunDirectoryError:
    """The error to raise where the directory `run` cannot be written."""
    return RunDirectoryError(f"{run}: cannot be written: {error.strerror}; set run.directory to a folder that can")


def _schema_of(run: Path) -> int | None:
    """The schema of the run in the directory `run`, None where there is no run. Runs without a number are schema 1."""
    if not traces(run):
        return None
    path = run / MARKER
    try:
        with opened(path) as file:
            schema = json.load(file)["schema"]
    except FileNotFoundError:
        return 1
    except (ValueError, RecursionError, TypeError, KeyError):
        schema = None  # refused below
    if not isinstance(schema, int):
        raise RecordError(f'{path}: not of the form {{"schema": {SCHEMA}}}; restore it, or move the run aside')
    return schema
