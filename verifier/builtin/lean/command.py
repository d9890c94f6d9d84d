"""The back end `command`: one confined `lean --json FILE` per check, each with its own import of the header."""

from __future__ import annotations

import threading

from verifier.builtin.lean import confined
from verifier.builtin.lean.assembly import Check, Message
from verifier.builtin.lean.backends import BackendTrouble, json_object, messages
from verifier.builtin.lean.settings import LeanSettings
from verifier.sandbox.limits import SandboxTrouble

FILE = "check.lean"


class CommandBackend:
    """Runs `settings.lean` in a sandbox. Raises ConfinementUnavailable where programs cannot be confined."""

    def __init__(self, settings: LeanSettings) -> None:
        self._settings = settings
        self._room = threading.Semaphore(settings.processes)
        self.sandbox = confined.open_sandbox(settings, settings.lean)

    def run(self, check: Check, seconds: float) -> list[Message]:
        """See Backend.run."""
        settings = self._settings
        argv = ["sh", "-c", 'file=$PWD/$1; shift; cd "$1" && shift && exec "$@" --json "$file"', "sh"]
        argv += [FILE, str(settings.project or "."), *settings.lean]
        limits = confined.limits(settings, wall_seconds=seconds, cpu_seconds=seconds * 4)
        try:
            with self._room:
                outcome = self.sandbox.run(
                    argv, {FILE: check.file}, b"", limits, environment=confined.environment(settings)
                )
        except SandboxTrouble as trouble:
            raise BackendTrouble("lean_died", str(trouble)) from trouble
        if outcome.ended in ("wall", "cpu"):
            raise BackendTrouble("deadline", f"no answer within {seconds:g} s")
        if outcome.ended != "exit":
            raise BackendTrouble("lean_died", f"ended by {outcome.ended}: {outcome.stderr_tail}")
        said = []
        for line in outcome.stdout.decode("utf-8", "replace").splitlines():
            if not line.startswith("{"):  # other output, of lake or a runtime
                continue
            said.append(json_object(line))
        if not said:
            reason = "lean_missing" if outcome.code in (126, 127) else "lean_died"
            raise BackendTrouble(reason, f"exit code {outcome.code} without a message: {outcome.stderr_tail}")
        return messages(said)

    def close(self) -> None:
        """See Backend.close."""
        self.sandbox.close()
