"""Killable helper processes that answer one JSON line at a time, for computations that Python cannot interrupt.

A process is borrowed for one question and returned; one that dies, or says something unexpected, is replaced. How it
died is told to the asker, because only the asker knows whether that is the answer's fault. Helpers get an empty
environment (nothing secret to read), their own session (a kill takes everything they started) and end with their input.
Knows nothing about what is asked.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any


class WorkerDied(RuntimeError):
    """The process ended before it answered; `code` as subprocess gives it: the signal's number, negative, if any."""

    def __init__(self, code: int, said: list[dict[str, Any]]) -> None:
        super().__init__(f"worker ended with {code}")
        self.code = code
        self.said = said
        """What it had answered by then."""


class WorkerStalled(RuntimeError):
    """No answer by the deadline; the process has been killed."""


class _Process:
    def __init__(self, command: Sequence[str], start_seconds: float) -> None:
        self.asked = 0
        self._buffer = b""
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
            close_fds=True,
        )
        self.lines(1, time.monotonic() + start_seconds)

    def send(self, body: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self.asked += 1
        with contextlib.suppress(BrokenPipeError):  # how it died is seen where its answer is awaited
            self._process.stdin.write(json.dumps(body).encode() + b"\n")
            self._process.stdin.flush()

    def lines(self, count: int, deadline: float, last: str = "") -> list[dict[str, Any]]:
        """`count` answers, fewer if one has `last` set to false. Raises WorkerDied, WorkerStalled."""
        assert self._process.stdout is not None
        found: list[dict[str, Any]] = []
        while len(found) < count:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                found.append(json.loads(line))
                if last and found[-1].get(last) is False:
                    break
                continue
            if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self.end()
                raise WorkerStalled("no answer by the deadline")
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                raise WorkerDied(self.end(), found)
            self._buffer += data
        return found

    def end(self) -> int:
        """Kill what is left of it; returns how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2 if self._process.poll() is None and self._closed() else 0)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return code

    def _closed(self) -> bool:
        """Whether its answers have ended: then it is dying by itself, and how it dies is worth a moment's wait."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])


class Workers:
    """As many processes as there are questions at once; each answers `recycle` questions at most."""

    def __init__(self, command: Sequence[str], *, start_seconds: float = 60.0, recycle: int = 500) -> None:
        self._command = tuple(command)
        self._start_seconds = start_seconds
        self._recycle = recycle
        self._idle: list[_Process] = []
        self._lock = threading.Lock()

    def ask(self, body: dict[str, Any], *, answers: int, deadline_seconds: float, last: str = "") -> list[Any]:
        """Send one question and wait for `answers` lines (fewer after one whose field `last` is false).

        Raises:
            WorkerDied: it ended first. WorkerStalled: nothing for `deadline_seconds`; OSError: it cannot be started.
        """
        with self._lock:
            process = self._idle.pop() if self._idle else None
        if process is None:
            process = _Process(self._command, self._start_seconds)
        try:
            process.send(body)
            found = process.lines(answers, time.monotonic() + deadline_seconds, last)
        except BaseException:
            process.end()
            raise
        if process.asked >= self._recycle:  # an algebra system's caches only grow
            process.end()
        else:
            with self._lock:
                self._idle.append(process)
        return found

    def close(self) -> None:
        """End the idle ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()
