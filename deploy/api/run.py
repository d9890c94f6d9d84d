"""A run directory as a Python object: read at any time, and watched while the run is at work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from broker.errors import SieveError
from deploy.api import tables
from deploy.config.load import load
from deploy.config.tree import Config
from deploy.rundir import run_files
from deploy.rundir.schema import check_schema

if TYPE_CHECKING:
    import pyarrow

POLL_SECONDS = 0.2
STOPPED = (130, 143)
"""Exit codes of a run that drained after SIGINT or SIGTERM."""


class RunFailed(SieveError):
    """A run or an evaluation ended with an error: `exit_code` is its process's, the message what it printed."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]


class Run:
    """A run directory, whose files are read anew at each call: the run may be at work, stopped or finished."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """`path`: the run directory, such as `runs/demo`. Raises FileNotFoundError where none is."""
        self.path = Path(path).absolute()
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        if not (self.path / "config.yaml").is_file():
            raise FileNotFoundError(
                f"{self.path}: has no config.yaml, so it is no run directory; name one, e.g. runs/demo"
            )

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def config(self) -> Config:
        """The configuration of the run, defaults included. Raises SchemaError for a run of another release's schema."""
        check_schema(self.path)
        return load(self.path / "config.yaml", (), {}, check="none")

    @property
    def alive(self) -> bool:
        """Whether the run is at work; of runs that another program started, on this machine only."""
        return locked(self.path / "run.lock") if self._process is None else self._process.poll() is None

    @property
    def outcome(self) -> str | None:
        """How the run ended: `finished`, `stopped` (Ctrl-C, SIGTERM) or `failed`; None while it is at work.

        None also for a run that was killed before it could say so.
        """
        sessions = [] if self.alive else list(run_files.lines(self.path / "sessions.jsonl"))
        return str(sessions[-1]["outcome"]) if sessions else None

    def metrics(self) -> pyarrow.Table:
        """One row per optimiser step; the columns are the fields of metrics.jsonl, described in the docs' reference.

        `by_staleness` and `by_difficulty` are map<string, double>, the others int64, double or string, null where a
        step has no value. Shares are 0–1, log-probabilities and divergences in nats, times in seconds, staleness in
        versions. A step that was trained again after a crash is in the table once, as trained last.
        """
        return tables.metrics(self.path)

    def evaluations(self) -> pyarrow.Table:
        """One row per evaluated version, by version; the columns are the fields of eval.jsonl.

        `version`, `step`, `time` (Unix seconds), `prompts`, `samples` (per prompt), `pass@k` for powers of two k (0–1),
        `distinct_correct` (different right answers per prompt), and what else the evaluation counted.
        """
        return tables.evaluations(self.path)

    def samples(self, version: int | None = None) -> pyarrow.Table:
        """One row per judged sample of the evaluation of `version`; None: of all evaluated versions.

        Columns: `version` int32; `prompt` int32, the row of data.eval; `sample` int32, from 0 for each prompt;
        `outcome` string, `pass` or `fail`; `answer` string, of a right answer its canonical form, else the text;
        `tokens` list<int32>; `log_prob` float32, Σ_t log π(y_t | y_<t) under that version, in nats.
        Raises SieveError for a version that was not evaluated.
        """
        return tables.samples(self.path, version)

    def summary(self) -> dict[str, Any]:
        """The results as report/summary.json has them.

        `base` and `tuned` (pass@k, distinct answers; None before they are evaluated), `wall_seconds`, `groups_trained`,
        `completions`, `duplicates`, `lost`, `staleness_mean`, `ess_mean`. Raises SieveError when nothing was trained or
        evaluated yet, or the run's files contradict each other.
        """
        from deploy.reports.summary import summarize

        return summarize(self.path).summary

    def watch(self) -> Iterator[dict[str, Any]]:
        """The record of each optimiser step, a line of metrics.jsonl, from the first one until the run ends.

        A step that is trained again after a crash comes again. Raises RunFailed when a run that this program started
        ends with an error.
        """
        offset = inode = 0
        while True:
            alive = self.alive  # asked before reading: what was written before the end is read after it
            found, offset, inode = appended(self.path / "metrics.jsonl", offset, inode)
            yield from found
            if not alive:
                break
            time.sleep(POLL_SECONDS)
        self.wait()

    def wait(self, timeout: float | None = None) -> Run:
        """Wait for the end of the run, at most `timeout` seconds; returns the run itself.

        Raises TimeoutError, and RunFailed when a run that this program started ended with an error. A run that was
        stopped has not failed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.alive:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{self.path}: the run has not ended within {timeout:g} s; stop() ends it")
            time.sleep(POLL_SECONDS)
        if self._process is not None and self._errors is not None:
            raise_failure(self._process.returncode, self._errors)
        return self

    def stop(self) -> None:
        """Ask the run to drain, as Ctrl-C does, so that it can be resumed; a second call kills what still drains.

        Returns at once; `wait` waits. Raises RuntimeError for a run that another program started.
        """
        if self._process is None:
            raise RuntimeError(f"{self.path}: another program started this run; press Ctrl-C in its `sieve run`")
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)


def attach(path: Path, process: subprocess.Popen[bytes], errors: IO[bytes]) -> Run:
    """The run that `process` is; `errors` is the file to which it writes its error output."""
    run = Run(path)
    run._process, run._errors = process, errors
    return run


def raise_failure(code: int, errors: IO[bytes]) -> None:
    """Raise RunFailed with the error lines of a process that ended with `code`, unless it ended well or was stopped."""
    if code == 0 or code in STOPPED:
        return
    errors.seek(0)
    printed = errors.read().decode(errors="replace").strip().splitlines()
    said = [line.removeprefix("sieve: ") for line in printed if line.startswith("sieve: ")] or printed[-20:]
    raise RunFailed("\n".join(said) or f"the process ended with code {code} and no message", code)


def locked(path: Path) -> bool:
    """Whether a process of this machine holds the lock file `path`, without taking the lock even for a moment."""
    try:
        number = str(path.stat().st_ino)
        held = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    # "1: FLOCK  ADVISORY  WRITE 4711 08:01:1315 0 EOF": the sixth field ends in the number of the locked file.
    fields = [line.split() for line in held]
    return any(len(line) > 5 and line[1] == "FLOCK" and line[5].rpartition(":")[2] == number for line in fields)


def appended(path: Path, offset: int, inode: int) -> tuple[list[dict[str, Any]], int, int]:
    """(records of the whole lines after byte `offset` of a JSONL file, the new offset, its inode number).

    A file with another inode number is another learner's and is read from its beginning. Raises RecordError."""
    found = []
    try:
        with run_files.opened(path) as file:
            before, inode = inode, os.fstat(file.fileno()).st_ino
            if inode != before or file.seek(0, os.SEEK_END) < offset:
                offset = 0
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written
                try:
                    found.append(json.loads(line))
                except (ValueError, RecursionError):
                    raise run_files.RecordError(f"{path}: the line at byte {offset} is not JSON; remove it") from None
                offset += len(line)
    except FileNotFoundError:
        pass
    return found, offset, inode
