"""The verifier's side of the grader, the confined process that runs a record's checks and its checker.

The grader never holds the solution, and its verdict comes under a nonce that the solution never learns.
"""

from __future__ import annotations

import builtins
import json
import secrets
from collections.abc import Callable
from typing import Any

from verifier.builtin.failed import Failed
from verifier.builtin.python.problem import Check, MalformedRecord, Problem, Script, bound_names
from verifier.sandbox.limits import SandboxTrouble
from verifier.sandbox.running import Running

ENDING_SECONDS = 0.5
"""How long a process that closed its channel is given to end by itself, so that the way in which it ends is known."""


class Grading:
    """A grader under way. `seconds` and `max_bytes` limit each of its messages."""

    def __init__(self, problem: Problem, process: Running, seconds: float, max_bytes: int) -> None:
        self._problem, self._process, self._seconds, self._max_bytes = problem, process, seconds, max_bytes

    def check(self, index: int, test: Check, ask: Callable[[str], dict[str, Any]]) -> None:
        """Run a check; `ask` has the solution answer one of its calls (JSON text) and returns the checked reply.

        Raises Failed, MalformedRecord, SandboxTrouble.
        """
        nonce = secrets.token_hex(16)
        message: dict[str, Any] = {"nonce": nonce, "source": test.source}
        answered = False
        while True:
            told = self._tell(index, message, answered)
            if told.get("nonce") == nonce:
                self._conclude(index, told, "check_failed", test.source)
                return
            message = ask(json.dumps(told))
            answered = True

    def accept(self, index: int, test: Script, printed: bytes) -> None:
        """Have the record's checker decide about what a program printed. Raises as `check` does."""
        try:
            output = printed.decode("utf-8")
        except UnicodeDecodeError:
            raise Failed("wrong_answer", f"test {index}: printed {printed[:200]!r}, which is not UTF-8") from None
        message = {"nonce": secrets.token_hex(16), "input": test.stdin, "output": output, "expected": test.expected}
        told = self._tell(index, message, True)
        if told.get("nonce") != message["nonce"]:
            raise MalformedRecord(f"test {index}: the checker calls the entry; it may only look at what was printed")
        self._conclude(index, told, "wrong_answer", self._problem.checker)

    def _tell(self, index: int, message: dict[str, Any], answered: bool) -> dict[str, Any]:
        line = self._process.ask(json.dumps(message, separators=(",", ":")).encode(), self._seconds, self._max_bytes)
        if line is None:
            how = self._process.stop(ENDING_SECONDS)
            said = f"test {index}: the check did not end by itself ({how.ended} {how.code})"
            if answered:  # the solution's values may have caused it; as `error`, it could choose to be judged again
                raise Failed("check_failed", said)
            raise SandboxTrouble(said)
        told: dict[str, Any] = json.loads(line)
        return told

    def _conclude(self, index: int, told: dict[str, Any], reason: str, source: str) -> None:
        if told["passed"] is True:
            return
        said = f"test {index}: {told['detail']}"
        name = told["name"]
        # A name that is bound nowhere was missed whatever the solution did; one that is bound somewhere may have been
        # left unbound because of the solution.
        if told["blame"] == "record" or (name and name not in bound_names(source) | self._bound()):
            raise MalformedRecord(said)
        raise Failed("exception" if told["blame"] == "program" and reason == "check_failed" else reason, said)

    def _bound(self) -> set[str]:
        return bound_names(self._problem.setup) | bound_names(self._problem.checker) | set(vars(builtins))
