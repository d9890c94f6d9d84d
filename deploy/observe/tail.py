"""A reader that follows `metrics.jsonl`, the file to which the learner appends one line per optimiser step."""

from __future__ import annotations

import json
import os
import statistics
from collections import deque
from pathlib import Path

from deploy.rundir.run_files import RecordError, opened, step_record
from learner.step_record import StepRecord

RECENT = 20
"""Number of newest steps that are kept, over which the pace is taken."""
MIN_PACE_STEPS = 3
"""Fewest steps with a duration that give a pace: the first one includes the start of all services."""


class Tail:
    """The newest records of a run's `metrics.jsonl`; each `read` reads only what was appended since the last one."""

    def __init__(self, run: Path) -> None:
        self._path = run / "metrics.jsonl"
        self._offset = self._inode = 0
        self.recent: deque[StepRecord] = deque(maxlen=RECENT)

    def read(self) -> StepRecord | None:
        """The newest step's record, or None before the first step. Raises RecordError for a line that is none."""
        try:
            with opened(self._path) as file:
                inode = os.fstat(file.fileno()).st_ino
                if inode != self._inode or file.seek(0, 2) < self._offset:  # of another learner, or written anew
                    self._offset, self._inode = 0, inode
                    self.recent.clear()
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # still being written
                    try:
                        record = json.loads(line)
                    except (ValueError, RecursionError):
                        problem = f"{self._path}: the line at byte {self._offset} is not JSON; remove it"
                        raise RecordError(problem) from None
                    self._offset += len(line)
                    self.recent.append(step_record(self._path, record))
        except FileNotFoundError:
            return None
        return self.recent[-1] if self.recent else None

    def seconds_per_step(self) -> float | None:
        """Median duration of the recent steps, waits included; None before MIN_PACE_STEPS of them."""
        paces = [record.seconds for record in self.recent]
        return statistics.median(paces) if len(paces) >= MIN_PACE_STEPS else None
