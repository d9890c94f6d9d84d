"""The verifier `python`: programs judged by unit tests and by stdin and stdout, in a sandbox.

The solution runs in its own process and receives inputs only: expected values and checks never enter its process, its
directory or its descriptors. It returns JSON values. Each is compared here with the expected value, or handed to a
second confined process (the grader), which runs the record's own checks and never holds the solution. The grader's
verdict comes over a descriptor that the solution does not have, with a nonce that the solution never learns. Whatever a
program does to its own interpreter, it can therefore only send another value, which is right or wrong.

Programs that are wrong, too slow, too large or out of protocol fail. `error` is for malformed records, a sandbox that
does not work, and a machine without time or memory. One process runs all tests with `call` and `check` of an answer (so
a program can keep state between them); each test with `input` has its own. Judging stops at the first failed test.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from verifier.builtin.confinement import ConfinementUnavailable
from verifier.builtin.failed import Failed
from verifier.builtin.python.problem import Call, Check, Problem, Script, program_of, read_record
from verifier.builtin.python.settings import PythonOptions
from verifier.builtin.python.values import NotAValue, equal, read, same_text
from verifier.protocol import Judgement
from verifier.sandbox.limits import Limits, Outcome, SandboxTrouble, Starved
from verifier.sandbox.running import Running
from verifier.sandbox.sandbox import Sandbox

log = logging.getLogger("sieve.python")

_ENDED: dict[str, str] = {
    "wall": "time_limit",
    "cpu": "time_limit",
    "memory": "memory_limit",
    "disk": "disk_limit",
    "output": "output_limit",
    "signal": "killed",
}
_TROUBLES = frozenset({"syntax_error", "exception", "no_entry", "not_json"})
"""What the runner may report instead of a value. The solution could forge these reports, so each of them is a fail."""
_ENDING_SECONDS = 0.5
_RUNNER = Path(__file__).with_name("runner.py")


class PythonCode:
    """The verifier `python`; its options are those of PythonOptions. Raises ValueError, ConfinementUnavailable."""

    name = "python"
    version = "1"
    reasons = frozenset(
        {"correct", "no_program", "too_long", "bad_text", "wrong_answer", "check_failed", "out_of_turn", "ended_early"}
        | {"malformed_record", "sandbox_trouble", "starved"}
        | set(_ENDED.values())
        | _TROUBLES
    )

    def __init__(self, **options: Any) -> None:
        try:
            self._options = PythonOptions.model_validate(options)
        except ValidationError as error:
            raise ValueError("; ".join(_lines(error))) from None
        self._runner = _RUNNER.read_text()
        self._python, self._python_version, self._sandbox = _find_interpreter(self._options)

    @property
    def fingerprint(self) -> str:
        """The version of the interpreter that runs programs, since another one could give another verdict."""
        return f"python {self._python_version}"

    @property
    def info(self) -> dict[str, str]:
        """The verifier's level of confinement, shown in the metric `sieve_verifier_info`."""
        return {"sandbox": self._sandbox.level}

    def close(self) -> None:
        """End the sandbox."""
        self._sandbox.close()

    def judge(self, record: Mapping[str, Any], answer: str) -> Judgement:
        """Pass if every test passes; the answer's canonical form is its program without white space at line ends."""
        try:
            problem = read_record(record)
        except ValueError as error:
            return Judgement("error", "malformed_record", str(error))
        try:
            program = self._program(answer)
            self._judge(problem, program)
        except Failed as failed:
            return Judgement("fail", failed.reason, failed.detail)
        except Starved as starved:
            return Judgement("error", "starved", str(starved))
        except SandboxTrouble as trouble:
            return Judgement("error", "sandbox_trouble", str(trouble))
        return Judgement("pass", "correct", "", "\n".join(line.rstrip() for line in program.strip().splitlines()))

    def _program(self, answer: str) -> str:
        program = program_of(answer, self._options.fence)
        if program is None or not program.strip():
            raise Failed("no_program", "no closed fence of Python in the answer")
        try:
            size = len(program.encode())
        except UnicodeEncodeError:
            raise Failed("bad_text", "the program contains half a surrogate pair") from None
        if "\0" in program:
            raise Failed("bad_text", "the program contains a null character")
        if size > self._options.program_bytes:
            raise Failed("too_long", f"{size} bytes, at most {self._options.program_bytes}")
        return program

    def _judge(self, problem: Problem, program: str) -> None:
        called = [(index, test) for index, test in enumerate(problem.tests) if not isinstance(test, Script)]
        if called:
            limits = self._options.limits(self._options.seconds)
            with self._start(["calls", problem.entry], program, limits) as solution:
                if any(isinstance(test, Check) for _, test in called):
                    with self._start(["checks"], "", limits) as grader:
                        self._called(problem, called, solution, grader)
                else:
                    self._called(problem, called, solution, None)
        spent = 0.0
        for index, test in enumerate(problem.tests):
            if isinstance(test, Script):
                spent += self._script(index, test, program, self._options.seconds - spent)

    def _start(self, arguments: list[str], program: str, limits: Limits) -> Running:
        files = {"main.py": program} if program else {}
        return self._sandbox.start(self._command(arguments), files, b"", limits, channel=True)

    def _command(self, arguments: list[str]) -> list[str]:
        # -I: nothing from the environment or the directory; -S: no site-packages of the interpreter.
        extra = "".join(f"import sys; sys.path.append({str(path)!r})\n" for path in self._options.import_from)
        return [self._python, "-I", "-S", "-B", "-X", "utf8", "-c", extra + self._runner, *arguments]

    # --- tests that call

    def _called(
        self, problem: Problem, tests: list[tuple[int, Any]], solution: Running, grader: Running | None
    ) -> None:
        for index, test in tests:
            if isinstance(test, Call):
                found = self._value(index, test.arguments, solution)
                if not equal(test.expected, found, problem.tolerance):
                    raise Failed("wrong_answer", f"test {index}: {json.dumps(found)[:200]} is not what was expected")
            elif grader is not None:
                self._check(index, test, problem.entry, solution, grader)

    def _value(self, index: int, arguments: str, solution: Running) -> Any:
        """The value that one call returns. Each question has a random id, so that it cannot be answered in advance."""
        number = secrets.token_hex(16)
        seconds = self._options.seconds_per_test
        begun = time.monotonic()
        question = f'{{"id": "{number}", {arguments[1:]}'.encode()
        line = solution.ask(question, seconds, self._options.output_bytes)
        if line is None:
            late = time.monotonic() - begun >= seconds
            # A program that ends closes its channel a little earlier: wait shortly for the way in which it ends.
            outcome = solution.stop(0.0 if late else _ENDING_SECONDS)
            if late and outcome.ended == "stopped":
                raise Failed("time_limit", f"test {index}: more than {seconds:g} s")
            raise _failed(index, outcome)
        try:
            reply = read(line)
        except NotAValue as error:
            raise Failed("not_json", f"test {index}: {error}") from None
        if not isinstance(reply, dict) or reply.get("id") != number:
            raise Failed("out_of_turn", f"test {index}: a message that does not answer the question")
        if reply.keys() == {"id", "value"}:
            return reply["value"]
        reason, detail = reply.get("trouble"), reply.get("detail")
        if not isinstance(reason, str) or reason not in _TROUBLES:
            raise Failed("out_of_turn", f"test {index}: a message with neither a value nor a known reason")
        raise Failed(reason, f"test {index}: {detail!s:.500}")

    def _check(self, index: int, test: Check, entry: str, solution: Running, grader: Running) -> None:
        """Have the grader run a check; its calls are passed to the solution as JSON."""
        nonce = secrets.token_hex(16)
        message = json.dumps({"nonce": nonce, "source": test.source, "entry": entry}).encode()
        answered = False
        while True:
            line = grader.ask(message, self._options.seconds_per_test, self._options.output_bytes)
            if line is None:
                how = grader.stop(_ENDING_SECONDS)
                said = f"test {index}: the check did not end by itself ({how.ended} {how.code})"
                if answered:  # the solution's values may have caused it; as `error`, it could choose to be judged again
                    raise Failed("check_failed", said)
                raise SandboxTrouble(said)
            told = json.loads(line)
            if told.get("nonce") == nonce:
                if told["passed"] is not True:
                    raise Failed("check_failed", f"test {index}: {told['detail']}")
                return
            message = json.dumps({"value": self._value(index, json.dumps(told), solution)}).encode()
            answered = True

    # --- tests of the whole program

    def _script(self, index: int, test: Script, program: str, left: float) -> float:
        """Run a test of the whole program; returns the seconds it took, less starvation."""
        seconds = min(self._options.seconds_per_test, left)
        if seconds < 0.05:
            raise Failed("time_limit", f"test {index}: no time is left of {self._options.seconds:g} s for all tests")
        outcome = self._sandbox.run(
            self._command(["script"]), {"main.py": program}, test.stdin, self._options.limits(seconds)
        )
        if outcome.ended != "exit":
            raise _failed(index, outcome)
        if outcome.code != 0:
            raise Failed("exception", f"test {index}: exit code {outcome.code}; {outcome.stderr_tail}")
        if not same_text(test.expected, outcome.stdout):
            raise Failed("wrong_answer", f"test {index}: printed {outcome.stdout[:200]!r}")
        return outcome.seconds - outcome.starved_seconds


def _failed(index: int, outcome: Outcome) -> Failed:
    """The failure of a test for which the program ended without an answer."""
    reason = _ENDED.get(outcome.ended, "ended_early")  # it ended by itself or closed its channel
    return Failed(reason, f"test {index}: {outcome.ended} {outcome.code}; {outcome.stderr_tail}")


def _lines(error: ValidationError) -> list[str]:
    """One line for each problem: key, value, limit, remedy."""
    found = []
    for problem in error.errors(include_url=False):
        key = ".".join(("options", *map(str, problem["loc"])))
        given = f" = {problem['input']!r:.80}" if problem["loc"] else ""
        said = problem["msg"].removeprefix("Value error, ")
        found.append(f"{key}{given}: {said}; correct or remove it in the queue's options")
    return found


def _find_interpreter(options: PythonOptions) -> tuple[str, str, Sandbox]:
    """The first interpreter that runs confined, its version, and its sandbox. Raises ConfinementUnavailable."""
    own = os.path.realpath(sys.executable)
    candidates = (
        [str(options.interpreter)] if options.interpreter else [own, "/usr/local/bin/python3", "/usr/bin/python3"]
    )
    tried = []
    for candidate in candidates:
        if not os.access(candidate, os.X_OK):
            continue
        sandbox = options.sandbox.open((*_installation(candidate), *options.import_from))
        try:
            outcome = sandbox.run([candidate, "-I", "-S", "-c", "import json, sys; print(sys.version.split()[0])"])
        except SandboxTrouble as error:
            tried.append(f"{candidate}: {error}")
        else:
            if outcome.ended == "exit" and outcome.code == 0:
                version = outcome.stdout.decode().strip()
                log.info("programs run in %s (Python %s)", candidate, version)
                return candidate, version, sandbox
            tried.append(f"{candidate}: {outcome.ended} {outcome.code}, {outcome.stderr_tail}")
        sandbox.close()
    raise ConfinementUnavailable(
        f"no Python runs in the sandbox ({'; '.join(tried)}); set interpreter to one that every user may execute, such "
        "as /usr/bin/python3 (for a service run as root, programs run as another user and cannot reach a Python below "
        "/root)"
    )


def _installation(interpreter: str) -> tuple[Path, ...]:
    """The installation directory of an interpreter outside /usr, which it must be able to read."""
    path = Path(interpreter).resolve()
    return () if path.is_relative_to("/usr") else (path.parents[1],)
