"""The verifier `python`: programs judged by unit tests and by stdin and stdout, in a sandbox.

The solution runs in its own process and receives inputs only: expected values and checks never enter its process, its
directory or its descriptors. It returns values of a closed set, as JSON. Each is compared here with the expected value,
or handed to a second confined process (the grader), which runs the record's own checks and checker and never holds the
solution. The grader's verdict comes over a descriptor that the solution does not have, with a nonce that the solution
never learns. Whatever a program does to its own interpreter, it can therefore only send another value or exception,
which is right or wrong.

Programs that are wrong, too slow, too large or out of protocol fail. `error` is for malformed records, a sandbox that
does not work, and a machine without time or memory. One process runs all tests with `call` and `check` of an answer (so
a program can keep state between them); each test with `input` has its own. Judging stops at the first failed test.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from verifier.builtin.failed import Failed
from verifier.builtin.python.grader import ENDING_SECONDS, Grading
from verifier.builtin.python.interpreter import find_interpreter
from verifier.builtin.python.printed import same_text
from verifier.builtin.python.problem import (
    Call,
    Check,
    MalformedRecord,
    Problem,
    Script,
    program_of,
    read_record,
)
from verifier.builtin.python.settings import PythonOptions
from verifier.builtin.python.values import NotAValue, equal, parse, value_of
from verifier.protocol import Judgement
from verifier.sandbox.limits import STRETCH, Limits, Outcome, SandboxTrouble, Starved
from verifier.sandbox.readable import Readable
from verifier.sandbox.running import Running

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
_INSIDE = Path(__file__).with_name("inside")


class PythonCode:
    """The verifier `python`; its options are those of PythonOptions. Raises ValueError, ConfinementUnavailable."""

    name = "python"
    version = "2"
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
        source = {name: (_INSIDE / f"{name}.py").read_text() for name in ("forms", "loading", "calling", "grading")}
        loading = f"PRELUDE = {self._options.prelude!r}\n{source['loading']}"
        self._script_source = loading + "load('__main__')\n"
        self._calling = loading + source["forms"] + source["calling"] + "calls(sys.argv[1])\n"
        self._grader = source["forms"] + source["grading"] + "grade(sys.argv[1])\n"
        self._python, self._python_version, self._sandbox = find_interpreter(self._options)
        self._try_prelude()

    @property
    def fingerprint(self) -> str:
        """The version of the interpreter that runs programs, since another one could give another verdict."""
        return f"python {self._python_version}"

    @property
    def info(self) -> dict[str, str]:
        """The level of confinement and the kernel's bounds, shown in metrics."""
        return self._sandbox.info

    @property
    def readable(self) -> Readable:
        """What programs can read."""
        return self._sandbox.readable

    def close(self) -> None:
        """End the sandbox."""
        self._sandbox.close()

    def _try_prelude(self) -> None:
        """Raise ValueError if the prelude does not run by itself, which no program could help."""
        if self._options.prelude:
            limits = self._options.limits(self._options.seconds_per_test)
            outcome = self._sandbox.run(self._command(self._script_source), {"main.py": ""}, b"", limits)
            if outcome.ended != "exit" or outcome.code != 0:
                self.close()
                raise ValueError(
                    f"options.prelude does not run ({outcome.ended} {outcome.code}): {outcome.stderr_tail}; correct "
                    "it, or name the directories of what it imports in options.import_from"
                )

    def judge(self, record: Mapping[str, Any], answer: str) -> Judgement:
        """Pass if every test passes; the answer's canonical form is its program without white space at line ends."""
        try:
            problem = read_record(record)
            program = self._program(answer)
            self._judge(problem, program)
        except MalformedRecord as error:
            return Judgement("error", "malformed_record", str(error))
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
        tests = list(enumerate(problem.tests))
        called = [(index, test) for index, test in tests if not isinstance(test, Script)]
        with contextlib.ExitStack() as stack:
            grading: Grading | None = None

            def grader() -> Grading:
                nonlocal grading
                if grading is None:
                    grading = self._grading(problem, stack)
                return grading

            if called:
                limits = self._options.limits(self._options.seconds)
                with self._start(self._calling, problem.entry, {"main.py": program}, limits) as solution:
                    if any(isinstance(test, Check) for _, test in called):
                        grader()  # starts while the program loads
                    self._called(problem, called, solution, grader)
            spent = 0.0
            for index, test in tests:
                if isinstance(test, Script):
                    outcome = self._script(index, test, program, self._options.seconds - spent)
                    spent += outcome.seconds - outcome.starved_seconds
                    if problem.checker:
                        grader().accept(index, test, outcome.stdout)
                    elif not same_text(test.expected, outcome.stdout, problem.tolerance):
                        raise Failed("wrong_answer", f"test {index}: printed {outcome.stdout[:200]!r}")

    def _grading(self, problem: Problem, stack: contextlib.ExitStack) -> Grading:
        # It mostly waits for the solution, hence the wall time; its checks may send arguments larger than any reply.
        limits = self._options.limits(self._options.seconds)
        limits = replace(limits, wall_seconds=min(86_400.0, (STRETCH + 1) * self._options.seconds))
        files = {"setup.py": problem.setup, "checker.py": problem.checker}
        process = self._start(self._grader, problem.entry, {name: text for name, text in files.items() if text}, limits)
        stack.enter_context(process)
        return Grading(problem, process, self._options.seconds_per_test, 16 * self._options.output_bytes)

    def _start(self, source: str, entry: str, files: dict[str, str], limits: Limits) -> Running:
        return self._sandbox.start(self._command(source, entry), files, b"", limits, channel=True)

    def _command(self, source: str, *arguments: str) -> list[str]:
        # -I: nothing from the environment or the directory; -S: no site-packages of the interpreter.
        extra = "".join(f"import sys; sys.path.append({str(path)!r})\n" for path in self._options.import_from)
        return [self._python, "-I", "-S", "-B", "-X", "utf8", "-c", extra + source, *arguments]

    # --- tests that call

    def _called(
        self, problem: Problem, tests: list[tuple[int, Call | Check]], solution: Running, grader: Callable[[], Grading]
    ) -> None:
        for index, test in tests:
            try:
                if isinstance(test, Call):
                    self._call(index, test, solution, problem.tolerance)
                elif isinstance(test, Check):
                    grader().check(index, test, partial(self._reply, index, solution))
            except Failed as failed:
                # What a program raises when its disk is full is told apart from its other exceptions.
                if failed.reason == "exception" and (outcome := solution.stop()).ended == "disk":
                    raise _failed(index, outcome) from failed
                raise

    def _call(self, index: int, test: Call, solution: Running, tolerance: float) -> None:
        reply = self._reply(index, solution, test.arguments)
        raised = reply.get("raised")
        if test.raises and raised is None:
            raise Failed("wrong_answer", f"test {index}: {test.raises} is not raised")
        if raised is not None:
            if test.raises not in raised:
                raise Failed("exception", f"test {index}: {raised[0]:.100}: {reply['text']:.500}")
            return
        if test.expected is not None and not equal(test.expected[0], value_of(reply["value"]), tolerance):
            shown = json.dumps(reply["value"])[:200]
            raise Failed("wrong_answer", f"test {index}: {shown} is not what was expected")
        if test.after is None:
            return
        if "after" not in reply:
            raise Failed("not_json", f"test {index}: an argument has no JSON form after the call")
        if not equal(test.after, value_of(reply["after"]["args"]), tolerance):
            shown = json.dumps(reply["after"]["args"])[:200]
            raise Failed(
                "wrong_answer", f"test {index}: the arguments {shown} after the call are not what was expected"
            )

    def _reply(self, index: int, solution: Running, arguments: str) -> dict[str, Any]:
        """The checked reply to one call, without its id. Each question has a random id: none is answered in advance."""
        number = secrets.token_hex(16)
        seconds = self._options.seconds_per_test
        begun = time.monotonic()
        question = f'{{"id": "{number}", {arguments[1:]}'.encode()
        # With the arguments after the call there are two values in a line.
        line = solution.ask(question, seconds, self._options.output_bytes * (2 if '"after": ' in arguments else 1))
        if line is None:
            late = time.monotonic() - begun >= seconds
            # A program that ends closes its channel a little earlier: wait shortly for the way in which it ends.
            outcome = solution.stop(0.0 if late else ENDING_SECONDS)
            if late and outcome.ended == "stopped":
                raise Failed("time_limit", f"test {index}: more than {seconds:g} s")
            raise _failed(index, outcome)
        try:
            reply = parse(line)
            if not isinstance(reply, dict) or reply.pop("id", None) != number:
                raise Failed("out_of_turn", f"test {index}: a message that does not answer the question")
            _check_reply(index, reply)
        except NotAValue as error:
            raise Failed("not_json", f"test {index}: {error}") from None
        return reply

    # --- tests of the whole program

    def _script(self, index: int, test: Script, program: str, left: float) -> Outcome:
        """Run the program on the input of a test. Raises Failed if it does not end by itself with exit code 0."""
        seconds = min(self._options.seconds_per_test, left)
        if seconds < 0.05:
            raise Failed("time_limit", f"test {index}: no time is left of {self._options.seconds:g} s for all tests")
        outcome = self._sandbox.run(
            self._command(self._script_source), {"main.py": program}, test.stdin.encode(), self._options.limits(seconds)
        )
        if outcome.ended != "exit":
            raise _failed(index, outcome)
        if outcome.code != 0:
            raise Failed("exception", f"test {index}: exit code {outcome.code}; {outcome.stderr_tail}")
        return outcome


def _check_reply(index: int, reply: dict[str, Any]) -> None:
    """Check the parts of a reply. Raises Failed for a reported trouble and for what is no reply, NotAValue."""
    if reply.keys() == {"trouble", "detail"}:
        reason = reply["trouble"]
        if isinstance(reason, str) and reason in _TROUBLES:
            raise Failed(reason, f"test {index}: {reply['detail']!s:.500}")
    after = reply.get("after", {"args": [], "kwargs": {}})
    fits = isinstance(after, dict) and after.keys() == {"args", "kwargs"}
    if fits and isinstance(after["args"], list) and isinstance(after["kwargs"], dict):
        values = [*after["args"], *after["kwargs"].values()]
        said, raised = reply.keys() - {"after"}, reply.get("raised")
        if said == {"value"}:
            values.append(reply["value"])
        elif (
            said == {"raised", "args", "text"}
            and isinstance(raised, list)
            and 1 <= len(raised) <= 100
            and all(isinstance(name, str) for name in (*raised, reply["text"]))
            and isinstance(reply["args"], list)
        ):
            values += reply["args"]
        else:
            said = set()
        for form in values:
            value_of(form)
        if said:
            return
    raise Failed("out_of_turn", f"test {index}: a message with neither a value nor a known reason")


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
