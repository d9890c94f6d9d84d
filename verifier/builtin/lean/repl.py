"""The back end `repl`: a pool of confined leanprover-community/repl processes.

Protocol: a JSON object and a blank line on stdin, a JSON object and a blank line on stdout. The prelude of a check
(imports, checker, opens) is run once in each process and its environment number kept; a check is one command in that
environment, so it never sees an environment that a proof could have changed. Environments are never freed, so a process
is replaced after `recycle` checks; if it ends earlier, at its memory limit say, the check is repeated in a new one. At
a deadline, and after an answer that cannot be parsed, it is ended with everything it started. Tactic mode is not used.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from typing import Any

from verifier.builtin.lean import confined
from verifier.builtin.lean.assembly import Check, Message
from verifier.builtin.lean.backends import MAX_OUTPUT, BackendTrouble, json_object, response
from verifier.builtin.lean.settings import LeanSettings
from verifier.sandbox.limits import SandboxTrouble, Starved
from verifier.sandbox.sandbox import Sandbox

HEADERS = 4
"""The most preludes in one process; a further one needs a new process, since environments are never freed."""
LIFE_SECONDS = 21_600.0
"""The age at which a process is replaced, well before LIMIT_SECONDS would end it in the middle of a check."""
LIMIT_SECONDS = 86_400.0
"""The most that the sandbox allows, of the clock and of CPU time."""
MOMENT_SECONDS = 0.5
"""How long a process that has closed its output may take to end by itself, so that its exit code can be reported."""


class ReplBackend:
    """A pool of at most `settings.processes` REPLs, started on demand. Raises ConfinementUnavailable where programs
    cannot be confined."""

    def __init__(self, settings: LeanSettings) -> None:
        self._settings = settings
        self._room = threading.Semaphore(settings.processes)
        self.sandbox = confined.open_sandbox(settings, settings.repl)
        self._lock = threading.Lock()
        self._idle: list[_Repl] = []
        self._closed = False

    def run(self, check: Check, seconds: float) -> list[Message]:
        """See Backend.run. Importing a prelude has its own deadline, `start_seconds`."""
        with self._room:
            repl = self._take(check.prelude)
            used = repl.used
            try:
                return self._run(repl, check, seconds)
            except BackendTrouble as trouble:
                if trouble.reason != "lean_died" or used == 0:
                    raise
            # It may have ended because of the checks before this one, whose environments fill its memory.
            return self._run(_Repl(self.sandbox, self._settings), check, seconds)

    def close(self) -> None:
        """See Backend.close. A REPL in use is ended when its check is done."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for repl in idle:
            repl.end()
        self.sandbox.close()

    def _run(self, repl: _Repl, check: Check, seconds: float) -> list[Message]:
        fit = False
        try:
            environment = repl.environment(check.prelude, self._settings.start_seconds)
            found = response(repl.ask({"cmd": check.command, "env": environment}, seconds))
            repl.used += 1
            fit = repl.used < self._settings.recycle and repl.age() < LIFE_SECONDS
            return found
        finally:
            self._give_back(repl, fit)

    def _take(self, prelude: str) -> _Repl:
        """An idle REPL that has the prelude, else one with room for it, else a new one, which replaces the oldest."""
        with self._lock:
            known = [repl for repl in self._idle if prelude in repl.preludes]
            roomy = [repl for repl in self._idle if len(repl.preludes) < HEADERS]
            chosen = known[-1] if known else roomy[-1] if roomy else None
            if chosen is not None:
                self._idle.remove(chosen)
                return chosen
            replaced = self._idle.pop(0) if self._idle else None
        if replaced is not None:
            replaced.end()
        return _Repl(self.sandbox, self._settings)

    def _give_back(self, repl: _Repl, fit: bool) -> None:
        with self._lock:
            if fit and not self._closed:
                self._idle.append(repl)
                return
        repl.end()


class _Repl:
    def __init__(self, sandbox: Sandbox, settings: LeanSettings) -> None:
        # The program's descriptor 3 is its end of the channel.
        argv = ["sh", "-c", 'cd "$1" && shift && exec "$@" <&3 >&3 3>&-', "sh", str(settings.project or ".")]
        try:
            self._running = sandbox.start(
                [*argv, *settings.repl],
                limits=confined.limits(settings, wall_seconds=LIMIT_SECONDS, cpu_seconds=LIMIT_SECONDS),
                environment=confined.environment(settings),
                channel=True,
            )
        except SandboxTrouble as trouble:
            raise BackendTrouble("lean_died", str(trouble)) from trouble
        self._begun = time.monotonic()
        self.preludes: dict[str, int] = {}
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
        begun = time.monotonic()
        try:
            data = json.dumps(question, ensure_ascii=False).encode()
            said = self._running.ask(data, seconds, MAX_OUTPUT, end=b"\n\n")
            if said is not None:
                return json_object(said)
            late = time.monotonic() - begun >= seconds
            outcome = self._running.stop(0.0 if late else MOMENT_SECONDS)
        except Starved as trouble:
            raise BackendTrouble("deadline", str(trouble)) from trouble
        except SandboxTrouble as trouble:
            raise BackendTrouble("lean_died", str(trouble)) from trouble
        if outcome.ended == "exit" and outcome.code in (126, 127):
            raise BackendTrouble("lean_missing", f"exit code {outcome.code}: {outcome.stderr_tail}")
        if outcome.ended != "stopped":
            how = f"exit code {outcome.code}" if outcome.ended == "exit" else outcome.ended
            raise BackendTrouble("lean_died", f"the REPL ended: {how}; {outcome.stderr_tail}")
        if late:
            raise BackendTrouble("deadline", f"no answer within {seconds:g} s")
        raise BackendTrouble("lean_output", f"more than {MAX_OUTPUT} bytes, or an answer that was not asked for")

    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._begun

    def end(self) -> None:
        """End the process and everything that it started."""
        with contextlib.suppress(SandboxTrouble), self._running:
            pass
