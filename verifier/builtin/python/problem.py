"""The record of a Python problem, and the extraction of the program from an answer. Pure; nothing is run.

    record: {"entry": "add",                     function the tests call; "Solution.add" for a method of a class
             "tests": [{"call": [1, 2], "expected": 3},                 arguments and the value that must come back
                       {"call": [], "kwargs": {"a": 1}, "expected": 1},
                       {"call": [[2, 1]], "after": [[1, 2]]},            the arguments after the call
                       {"call": [0], "raises": "ValueError"},            the exception's class or one of its bases
                       {"check": "assert candidate(0, 0) == 0"},        trusted source; `candidate` is the entry
                       {"input": "1 2\\n", "expected": "3\\n"}],         stdin and stdout of the whole program
             "setup": "import math",                                     trusted source that runs before the checks
             "checker": "def check(input, output, expected): …",         trusted; decides about stdout, True or False
             "tolerance": 1e-6}                                          for floats; default 0

Values are JSON, or tagged as in `inside.forms` where JSON has no such type.

The program of an answer is the content of its last closed fence (or its first, by option) of ``` or ~~~ marked python,
py, python3, python3.11 or nothing; an answer without any fence is a program as a whole.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from verifier.builtin.python.values import NotAValue, value_of

MAX_TESTS = 10_000
_KEYS = ("entry", "tests", "setup", "checker", "tolerance")
_LANGUAGE = re.compile(r"(python|py)?|(python|py)-?3(\.\d+)*|\{\.?python3?\}?", re.IGNORECASE)
# Possessive throughout, so that no line of an answer can make the match backtrack.
_FENCE = re.compile(r" {0,3}+(`{3,}+|~{3,}+)[ \t]*+([^`\s]*+)[^`]*+")
_ENTRY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)?")
_CLASS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class MalformedRecord(ValueError):
    """The record itself is at fault; the message names the part."""


@dataclass(frozen=True, slots=True)
class Call:
    """A test that calls the entry; `arguments` is the rest of the question as JSON text (see `inside.calling`)."""

    arguments: str
    expected: tuple[Any] | None
    """The value that must come back, in a tuple; None: any."""
    after: list[Any] | None
    """The positional arguments after the call; None: any."""
    raises: str
    """The name of the class, or of a base, of the exception that must be raised; empty: none."""


@dataclass(frozen=True, slots=True)
class Check:
    """A test by trusted source that calls `candidate` and raises if the answer is wrong."""

    source: str


@dataclass(frozen=True, slots=True)
class Script:
    """A test that runs the whole program on `stdin` and compares its stdout."""

    stdin: str
    expected: str


Test = Call | Check | Script


@dataclass(frozen=True, slots=True)
class Problem:
    """A validated record."""

    entry: str
    tests: tuple[Test, ...]
    tolerance: float
    setup: str
    checker: str


def read_record(record: Mapping[str, Any]) -> Problem:
    """The problem that a record describes. Raises MalformedRecord that names the wrong part."""
    unknown = sorted(str(key) for key in record.keys() - set(_KEYS))
    if unknown:
        raise MalformedRecord(
            f"record.{unknown[0]} is not a known key; there are {', '.join(_KEYS[:-1])} and {_KEYS[-1]}"
        )
    tolerance = record.get("tolerance", 0)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < math.inf:
        raise MalformedRecord(f"record.tolerance is {tolerance!r:.40}: give a number of at least 0")
    entry = record.get("entry", "")
    if not isinstance(entry, str) or (entry and not _ENTRY.fullmatch(entry)):
        raise MalformedRecord(f"record.entry is {entry!r:.60}: give a function's name or Class.method")
    setup, checker = (_source(f"record.{key}", record.get(key, "")) for key in ("setup", "checker"))
    tests = record.get("tests")
    if not isinstance(tests, list | tuple) or not 1 <= len(tests) <= MAX_TESTS:
        raise MalformedRecord(f"record.tests must be a list of 1 to {MAX_TESTS} tests")
    found = tuple(_test(f"record.tests[{index}]", test, bool(checker)) for index, test in enumerate(tests))
    if not entry and any(not isinstance(test, Script) for test in found):
        raise MalformedRecord("record.entry is missing: a test with call or check needs the name of what it calls")
    if checker and "check" not in bound_names(checker):
        raise MalformedRecord("record.checker defines no function check(input, output, expected)")
    if checker and not any(isinstance(test, Script) for test in found):
        raise MalformedRecord("record.checker is for tests with input, of which there is none")
    return Problem(entry, found, float(tolerance), setup, checker)


def bound_names(source: str) -> set[str]:
    """Every name that `source` binds anywhere: by assignment, definition, import or as a parameter."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            names.add(node.name)
    return names


def _source(where: str, source: Any) -> str:
    if not isinstance(source, str):
        raise MalformedRecord(f"{where} is {type(source).__name__}: give Python source as a text")
    try:
        compile(source, where, "exec", dont_inherit=True)
        source.encode()
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise MalformedRecord(f"{where} is not Python: {error}") from None
    return source


def _test(where: str, test: Any, has_checker: bool) -> Test:
    keys = set(test) if isinstance(test, Mapping) else set()
    if keys == {"check"}:
        return Check(_source(f"{where}.check", test["check"]))
    if keys == {"input", "expected"} or (keys == {"input"} and has_checker):
        stdin, expected = test["input"], test.get("expected", "")
        if isinstance(stdin, str) and isinstance(expected, str):
            if not (stdin + expected).isascii():
                _encoded(where, stdin + expected)
            return Script(stdin, expected)
    outcome = keys & {"expected", "after", "raises"}
    if outcome and {"call"} <= keys <= {"call", "kwargs", *outcome}:
        args, kwargs = test["call"], test.get("kwargs", {})
        if isinstance(args, list | tuple) and isinstance(kwargs, Mapping):
            return _call(where, test, list(args), dict(kwargs))
    raise MalformedRecord(
        f"{where} has {sorted(map(str, keys))}: give call (a list) with expected, after or raises and "
        "perhaps kwargs (an object), or input and expected (texts), or check (a text)"
    )


def _call(where: str, test: Mapping[str, Any], args: list[Any], kwargs: dict[Any, Any]) -> Call:
    raises = test.get("raises", "")
    if not isinstance(raises, str) or ("raises" in test and not _CLASS.fullmatch(raises)):
        raise MalformedRecord(f"{where}.raises is {raises!r:.60}: give the name of an exception's class")
    if raises and ("expected" in test or "after" in test):
        raise MalformedRecord(f"{where} has raises beside expected or after: give one or the other")
    after = test.get("after", [])
    if "after" in test and not (isinstance(after, list | tuple) and len(after) == len(args)):
        raise MalformedRecord(f"{where}.after must be a list with an entry for each of call's {len(args)}")
    try:
        value_of(args)
        for key, value in kwargs.items():
            if not isinstance(key, str):
                raise NotAValue(f"the keyword {key!r:.60} is not a text")
            value_of(value)
        expected = (value_of(test["expected"]),) if "expected" in test else None
        found = value_of(after)
        question: dict[str, Any] = {"args": args, "kwargs": kwargs}
        if "after" in test:
            question["after"] = "always"
        if expected is None:
            question["ignore"] = True
        arguments = json.dumps(question, allow_nan=False)
    except (NotAValue, TypeError, ValueError, RecursionError) as error:
        raise MalformedRecord(f"{where} holds something that is not JSON or a tagged value: {error}") from None
    return Call(arguments, expected, found if "after" in test else None, raises.rpartition(".")[2])


def _encoded(where: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MalformedRecord(f"{where} contains half a surrogate pair") from None


def program_of(answer: str, fence: Literal["last", "first"]) -> str | None:
    """The program of an answer by the rule in the module's docstring; None if its fences hold none."""
    blocks: list[str] = []
    fenced = False
    lines = answer.splitlines(keepends=True)
    at = 0
    while at < len(lines):
        opening = _FENCE.fullmatch(lines[at].rstrip("\r\n"))
        at += 1
        if opening is None:
            continue
        fenced = True
        mark, language = opening.groups()
        closing = re.compile(rf" {{0,3}}+{re.escape(mark[0])}{{{len(mark)},}}[ \t]*+")
        for end in range(at, len(lines)):
            if closing.fullmatch(lines[end].rstrip("\r\n")):
                if _LANGUAGE.fullmatch(language):
                    blocks.append("".join(lines[at:end]))
                at = end + 1
                break
        else:  # never closed: not a block, and the rest of the answer is inside it
            break
    if not fenced:
        return answer
    if not blocks:
        return None
    return blocks[-1 if fence == "last" else 0]
