"""The files of a run directory, read back: metrics.jsonl, eval.jsonl, raw evaluation samples, sessions and the audit.

Two of them, sessions.jsonl and audit.json, are written here too, for the launcher. A last line cut off by a crash is
not an error. A step that was trained again after a crash replaces the record of its first training, so that the
records always describe the history that the checkpoint has.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from broker.errors import EX_DATA, SieveError
from broker.plain_files import NotPlain, open_plain
from learner.step_record import StepRecord


class RecordError(SieveError):
    """A file of the run directory is missing, or its content contradicts its format or another file."""

    exit_code = EX_DATA


def opened(path: Path) -> BufferedReader:
    """A file of a run directory, open for reading. Raises RecordError for what is no regular file, OSError."""
    try:
        return open_plain(path)
    except NotPlain as error:
        raise RecordError(f"{path}: {error.strerror}; restore it, or move the run aside") from None


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a JSONL file; none if there is no such file. A last line that is cut off is left out.

    Raises RecordError, naming the line, for any other line that is not a JSON object.
    """
    if not path.exists():
        return
    with TextIOWrapper(opened(path), encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            try:
                value = json.loads(text)
            except (ValueError, RecursionError):
                if not text.endswith("\n"):
                    return
                raise RecordError(f"{path}: line {number} is not JSON; remove the line and try again") from None
            if not isinstance(value, dict):
                raise RecordError(f"{path}: line {number} is not an object; remove the line and try again")
            yield value


def steps(run: Path) -> list[StepRecord]:
    """The records of metrics.jsonl, one per optimiser step, by step; the newest where a step was trained again.

    Raises RecordError for a line that is no StepRecord.
    """
    path = run / "metrics.jsonl"
    newest: dict[int, StepRecord] = {}
    for value in lines(path):
        record = step_record(path, value)
        # After a crash the learner continues from its checkpoint: the steps after it are trained again.
        for later in [known for known in newest if known > record.step]:
            del newest[later]
        newest[record.step] = record
    return [newest[step] for step in sorted(newest)]


def step_record(path: Path, value: Any) -> StepRecord:
    """`value`, a line of the metrics.jsonl at `path`, as a record. Raises RecordError, naming the wrong field."""
    try:
        return StepRecord.model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = f"step {value.get('step')}" if isinstance(value, dict) else "a line"
        field = ".".join(str(part) for part in problem["loc"])
        raise RecordError(
            f"{path}: {where} is no record of an optimiser step: {field}: {problem['msg']}; remove the line, or use "
            f"the release that wrote it"
        ) from None


def evaluations(run: Path) -> list[dict[str, Any]]:
    """The records of eval.jsonl, one per evaluated version, by version."""
    newest = {int(record["version"]): record for record in lines(run / "eval.jsonl")}
    return [newest[version] for version in sorted(newest)]


@dataclass(frozen=True)
class Samples:
    """Counts of one evaluation: per prompt its judged samples, the correct ones, and the distinct correct answers."""

    n: tuple[int, ...]
    correct: tuple[int, ...]
    distinct: tuple[int, ...]


def samples(run: Path, version: int) -> Samples | None:
    """The counts of the evaluation of `version`, made from its raw samples; None if those were not kept.

    Raises RecordError where the counts that a line states contradict its samples.
    """
    path = run / "eval" / f"v{version:08d}.jsonl"
    if not path.exists():
        return None
    n, correct, distinct = [], [], []
    for number, record in enumerate(lines(path), 1):
        drawn = [(outcome, answer) for outcome, answer in record["samples"] if outcome != "error"]
        right = [answer for outcome, answer in drawn if outcome == "pass"]
        counted = (len(right), len(set(right)))
        if counted != (record["correct"], record["distinct"]):
            raise RecordError(
                f"{path}: line {number} says correct, distinct = {record['correct']}, {record['distinct']} but its "
                f"samples give {counted[0]}, {counted[1]}; the file was changed: evaluate again"
            )
        n.append(len(drawn))
        correct.append(counted[0])
        distinct.append(counted[1])
    return Samples(tuple(n), tuple(correct), tuple(distinct))


def audit(run: Path) -> dict[str, Any] | None:
    """The broker's audit as the launcher saved it when the run ended; None before that."""
    path = run / "audit.json"
    if not path.exists():
        return None
    try:
        with opened(path) as file:
            value = json.load(file)
    except (ValueError, RecursionError):
        raise RecordError(f"{path}: not JSON; `sieve audit CONFIG` prints a new one") from None
    return dict(value)


def wall_seconds(run: Path) -> float | None:
    """Total duration of the run's sessions of `sieve run`; None if it had none."""
    found = [record["seconds"] for record in lines(run / "sessions.jsonl")]
    return sum(found) if found else None


def append_session(run: Path, record: dict[str, Any]) -> None:
    """Append the record of one session of `sieve run` to sessions.jsonl."""
    with (run / "sessions.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically: a reader finds the old content or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
