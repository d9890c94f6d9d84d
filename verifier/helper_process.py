"""Killable helper processes that answer questions in JSON lines, for computations that Python cannot interrupt.

A process is borrowed for one question and returned; one that dies, stalls or reports itself spoilt is replaced. The
caller learns how it died, because only the caller can tell whether the answer is to blame. Helpers get an almost empty
environment (no secrets to read) and their own session (a kill reaches everything they started), and they end when their
input closes. The content of questions and answers is not interpreted here.
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
    """The process ended before it answered; `code` is its return code as in subprocess, −N after signal N."""

    def __init__(self, code: int, said: list[dict[str, Any]]) -> None:
        super().__init__(f"worker ended with {code}")
        self.code = code
        self.said = said
        """The answers it had given by then."""


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
        with contextlib.suppress(BrokenPipeError):  # a death is reported where the answer is awaited
            self._process.stdin.write(json.dumps(body).encode() + b"\n")
            self._process.stdin.flush()

    def lines(self, count: int, deadline: float, last: str = "") -> list[dict[str, Any]]:
        """`count` answers, fewer if one has its field `last` set to false. Raises WorkerDied, WorkerStalled."""
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
        """Kill the process and everything it started; returns its return code."""
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
        """Whether its output is readable, at this point because it ended: the process is dying by itself then, and a
        short wait yields its own return code."""
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], 0)[0])


class Workers:
    """A pool with as many processes as there are questions at once; each is replaced after `recycle` questions.

    A successor starts in the background while the old process goes on; only at twice `recycle` questions does a caller
    wait for it.
    """

    def __init__(self, command: Sequence[str], *, start_seconds: float = 60.0, recycle: int = 5000) -> None:
        self._command = tuple(command)
        self._start_seconds = start_seconds
        self._recycle = recycle
        self._idle: list[_Process] = []
        self._starting = 0
        self._closed = False
        self._lock = threading.Lock()

    def ask(self, body: dict[str, Any], *, answers: int, deadline_seconds: float, last: str = "") -> list[Any]:
        """Send one question and wait for `answers` lines (fewer after one whose field `last` is false).

        Raises:
            WorkerDied: the process ended first.
            WorkerStalled: the answers were not complete within `deadline_seconds`.
            OSError: a process could not be started.
        """
        process = self._borrow()
        if process is None:
            process = _Process(self._command, self._start_seconds)
        try:
            process.send(body)
            found = process.lines(answers, time.monotonic() + deadline_seconds, last)
        except BaseException:
            process.end()
            raise
        self._give_back(process, spoilt=any(answer.get("spoilt") for answer in found))
        return found

    def _borrow(self) -> _Process | None:
        """The idle process with the fewest questions; None if one has to be started."""
        with self._lock:
            self._idle.sort(key=lambda process: -process.asked)
            return self._idle.pop() if self._idle else None

    def _give_back(self, process: _Process, *, spoilt: bool) -> None:
        old, successor = [], False
        with self._lock:
            if spoilt or self._closed or process.asked >= 2 * self._recycle:
                old.append(process)
            else:
                self._idle.append(process)
                worn = [other for other in self._idle if other.asked >= self._recycle]
                fresh = len(self._idle) - len(worn)
                for other in worn[: max(0, fresh)]:  # as many as have a successor ready
                    self._idle.remove(other)
                    old.append(other)
                if process.asked >= self._recycle and process in self._idle and not self._starting:
                    self._starting, successor = self._starting + 1, True
        for other in old:
            other.end()
        if successor:
            threading.Thread(target=self._succeed, name="worker-start", daemon=True).start()

    def _succeed(self) -> None:
        process = None
        try:
            process = _Process(self._command, self._start_seconds)
        except (OSError, WorkerDied, WorkerStalled):
            return  # the next question that needs a new process meets the same error and reports it
        finally:
            with self._lock:
                self._starting -= 1
                if process is not None and not self._closed:
                    self._idle.append(process)
                    process = None
        if process is not None:
            process.end()

    def close(self) -> None:
        """End the idle processes; those in use end when they are returned."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()
