"""The back end `repl`: a pool of leanprover-community/repl processes.

Protocol: a JSON object and a blank line on stdin, a JSON object and a blank line on stdout. The prelude of a check
(imports, checker, opens) is run once in each process and its environment number kept; a check is one command in that
environment, so it never sees an environment that a proof could have changed. Environments are never freed, so a process
is replaced after `recycle` checks or when it exceeds its memory. Each leads its own process group, which is killed as a
whole at a deadline or after an answer that cannot be parsed. Tactic mode is not used.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import psutil

from verifier.builtin.lean.assembly import Check, Message
from verifier.builtin.lean.backends import MAX_OUTPUT, BackendTrouble, json_object, response
from verifier.builtin.lean.settings import LeanSettings

HEADERS = 4
"""The most preludes in one process; a further one needs a new process, since environments are never freed."""
PASSED_ON = ("PATH", "HOME", "LANG")
"""Environment variables that a REPL inherits."""


class ReplBackend:
    """A pool of at most `settings.processes` REPLs, started on demand."""

    def __init__(self, settings: LeanSettings) -> None:
        self._settings = settings
        self._room = threading.Semaphore(settings.processes)
        self._lock = threading.Lock()
        self._idle: list[_Repl] = []
        self._all: set[_Repl] = set()
        self._closed = False
        # A REPL ends when its input closes, but not in the middle of a proof.
        atexit.register(self.close)

    def run(self, check: Check, seconds: float) -> list[Message]:
        """See Backend.run. Importing a prelude has its own deadline, `start_seconds`."""
        with self._room:
            repl = self._take(check.prelude)
            fit = False
            try:
                environment = repl.environment(check.prelude, self._settings.start_seconds)
                said = repl.ask({"cmd": check.command, "env": environment}, seconds)
                found = response(said)
                repl.used += 1
                fit = repl.used < self._settings.recycle and repl.bytes() <= self._settings.memory_bytes
                return found
            finally:
                self._give_back(repl, fit)

    def close(self) -> None:
        """See Backend.close."""
        atexit.unregister(self.close)
        with self._lock:
            self._closed = True
            running, self._idle = list(self._all), []
        for repl in running:
            self._end(repl)

    def _take(self, prelude: str) -> _Repl:
        """An idle REPL that has the prelude, else one with room for it, else a new one, which replaces the oldest."""
        with self._lock:
            known = [repl for repl in self._idle if prelude in repl.preludes]
            roomy = [repl for repl in self._idle if len(repl.preludes) < HEADERS]
            chosen = known[-1] if known else roomy[-1] if roomy else None
            if chosen is not None:
                self._idle.remove(chosen)
            replaced = self._idle.pop(0) if chosen is None and self._idle else None
        if chosen is not None and chosen.alive():
            return chosen
        for useless in (chosen, replaced):
            if useless is not None:
                self._end(useless)
        started = _Repl(self._settings)
        with self._lock:
            self._all.add(started)
        return started

    def _give_back(self, repl: _Repl, fit: bool) -> None:
        with self._lock:
            if fit and not self._closed:
                self._idle.append(repl)
                return
        self._end(repl)

    def _end(self, repl: _Repl) -> None:
        repl.kill()
        with self._lock:
            self._all.discard(repl)


class _Repl:
    def __init__(self, settings: LeanSettings) -> None:
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        try:
            self._process = subprocess.Popen(
                settings.repl,
                cwd=settings.project,
                env=environment | settings.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise BackendTrouble("lean_missing", f"cannot start {settings.repl[0]!r}: {error}") from error
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin.fileno(), self._process.stdout.fileno()
        for descriptor in (self._stdin, self._stdout):
            os.set_blocking(descriptor, False)
        self.preludes: OrderedDict[str, int] = OrderedDict()
        self.used = 0

    def environment(self, prelude: str, seconds: float) -> int:
        """The number of the environment after `prelude`. Raises BackendTrouble also for errors in the prelude, which
        are not the proof's."""
        if prelude not in self.preludes:
            said = self.ask({"cmd": prelude}, seconds)
            errors = [message.text for message in response(said) if message.severity == "error"]
            if errors:
                raise BackendTrouble("lean_output", f"the header does not elaborate: {errors[0][:500]}")
            number = said.get("env")
            if type(number) is not int:
                raise BackendTrouble("lean_output", f"environment {number!r:.40} is not a number")
            self.preludes[prelude] = number
        return self.preludes[prelude]

    def ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The REPL's answer to `question`. Raises BackendTrouble; the process must then be replaced."""
        until = time.monotonic() + seconds
        rest = memoryview(json.dumps(question, ensure_ascii=False).encode() + b"\n\n")
        said = bytearray()
        while True:
            left = until - time.monotonic()
            if left <= 0:
                raise BackendTrouble("deadline", f"no answer within {seconds:g} s")
            readable, writable, _ = select.select([self._stdout], [self._stdin] if rest else [], [], left)
            if writable:
                try:
                    rest = rest[os.write(self._stdin, rest) :]
                except BrokenPipeError:
                    raise BackendTrouble("lean_died", self._end()) from None
            if not readable:
                continue
            data = os.read(self._stdout, 1 << 16)
            if not data:
                raise BackendTrouble("lean_died", self._end())
            said += data
            if len(said) > MAX_OUTPUT:
                raise BackendTrouble("lean_output", f"more than {MAX_OUTPUT} bytes")
            if said.rstrip(b" \r").endswith(b"\n\n"):
                break
        return json_object(bytes(said))

    def bytes(self) -> int:
        """Resident memory of the process and its descendants (`lake env` starts the REPL itself), bytes."""
        total = 0
        for process in self._family():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End the whole process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _family(self) -> Iterator[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            leader = psutil.Process(self._process.pid)
            yield leader
            yield from leader.children(recursive=True)

    def _end(self) -> str:
        try:
            return f"the REPL ended with code {self._process.wait(1)}"
        except subprocess.TimeoutExpired:
            return "the REPL closed its output"
