"""What a run wrote down, read back: metrics.jsonl, eval.jsonl, the raw evaluation samples, the audit and the sessions.

Reads only files of one run directory (and appends the launcher's own two: sessions.jsonl, audit.json); never asks the
broker. A last line cut off by a crash is not an error, and a step trained again after a crash replaces what was
written about it before, so figures always describe the history that the checkpoint has.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.errors import EX_DATA, SieveError


class RecordError(SieveError):
    """A file of the run directory is missing or does not hold what it should."""

    exit_code = EX_DATA


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a JSONL file; nothing if it is not there. A torn last line is left out.

    Raises RecordError, naming the line, for anything else that is not a JSON object.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            try:
                value = json.loads(text)
            except ValueError:
                if not text.endswith("\n"):
                    return
                raise RecordError(f"{path}: line {number} is not JSON; remove the line and ask again") from None
            if not isinstance(value, dict):
                raise RecordError(f"{path}: line {number} is not an object; remove the line and ask again")
            yield value


def steps(run: Path) -> list[dict[str, Any]]:
    """One record per optimiser step, by step; the newest where a step was trained again."""
    newest: dict[int, dict[str, Any]] = {}
    for record in lines(run / "metrics.jsonl"):
        step = int(record["step"])
        # A crash takes the learner back to its checkpoint: what came after it did not happen.
        for later in [known for known in newest if known > step]:
            del newest[later]
        newest[step] = record
    return [newest[step] for step in sorted(newest)]


def evaluations(run: Path) -> list[dict[str, Any]]:
    """One record per evaluated version, by version."""
    newest = {int(record["version"]): record for record in lines(run / "eval.jsonl")}
    return [newest[version] for version in sorted(newest)]


@dataclass(frozen=True)
class Samples:
    """Counts of one evaluation: for each held-out prompt its samples, the correct ones, and distinct correct
    answers."""

    n: tuple[int, ...]
    correct: tuple[int, ...]
    distinct: tuple[int, ...]


def samples(run: Path, version: int) -> Samples | None:
    """The raw samples behind an evaluation, counted anew; None if they were not kept.

    Raises RecordError where a line's own counts contradict its samples.
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
                f"samples give "
                f"{counted[0]}, {counted[1]}; the file was changed: evaluate again"
            )
        n.append(len(drawn))
        correct.append(counted[0])
        distinct.append(counted[1])
    return Samples(tuple(n), tuple(correct), tuple(distinct))


def audit(run: Path) -> dict[str, Any] | None:
    """The broker's own count, as the launcher saved it when the run ended; None before that."""
    path = run / "audit.json"
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise RecordError(f"{path}: not JSON; `sieve audit CONFIG` counts again") from None
    return dict(value)


def wall_seconds(run: Path) -> float | None:
    """Seconds that `sieve run` was at work on this run, over all its sessions; None if it never was."""
    found = [record["seconds"] for record in lines(run / "sessions.jsonl")]
    return sum(found) if found else None


def append_session(run: Path, record: dict[str, Any]) -> None:
    """Add one line about a session of `sieve run`."""
    with (run / "sessions.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file whole: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
