"""The record of a Python problem, and the extraction of the program from an answer. Pure; nothing is run.

    record: {"entry": "add",                     function the tests call; "Solution.add" for a method of a class
             "tests": [{"call": [1, 2], "expected": 3},                 arguments and the value that must come back
                       {"call": [], "kwargs": {"a": 1}, "expected": 1},
                       {"check": "assert candidate(0, 0) == 0"},        trusted source; `candidate` is the entry
                       {"input": "1 2\\n", "expected": "3\\n"}],         stdin and stdout of the whole program
             "tolerance": 1e-6}                                          for floats; default 0

The program of an answer is the content of its last closed fence (or its first, by option) of ``` or ~~~ marked python,
py, python3 or nothing; an answer without any fence is a program as a whole.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from verifier.builtin.python.values import NotAValue, check_depth

MAX_TESTS = 10_000
_LANGUAGES = {"", "python", "py", "python3"}
# Possessive throughout, so that no line of an answer can make the match backtrack.
_FENCE = re.compile(r" {0,3}+(`{3,}+|~{3,}+)[ \t]*+([^`\s]*+)[^`]*+")
_ENTRY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)?")


@dataclass(frozen=True, slots=True)
class Call:
    """A test that calls the entry; `arguments` is {"args", "kwargs"} as JSON text."""

    arguments: str
    expected: Any


@dataclass(frozen=True, slots=True)
class Check:
    """A test by trusted source that calls `candidate` and raises if the answer is wrong."""

    source: str


@dataclass(frozen=True, slots=True)
class Script:
    """A test that runs the whole program on `stdin` and compares its stdout."""

    stdin: bytes
    expected: str


Test = Call | Check | Script


@dataclass(frozen=True, slots=True)
class Problem:
    """A validated record."""

    entry: str
    tests: tuple[Test, ...]
    tolerance: float


def read_record(record: Mapping[str, Any]) -> Problem:
    """The problem that a record describes. Raises ValueError that names the wrong part."""
    unknown = sorted(str(key) for key in record.keys() - {"entry", "tests", "tolerance"})
    if unknown:
        raise ValueError(f"record.{unknown[0]} is not a known key; there are entry, tests and tolerance")
    tolerance = record.get("tolerance", 0)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < math.inf:
        raise ValueError(f"record.tolerance is {tolerance!r:.40}: give a number of at least 0")
    entry = record.get("entry", "")
    if not isinstance(entry, str) or (entry and not _ENTRY.fullmatch(entry)):
        raise ValueError(f"record.entry is {entry!r:.60}: give a function's name or Class.method")
    tests = record.get("tests")
    if not isinstance(tests, list | tuple) or not 1 <= len(tests) <= MAX_TESTS:
        raise ValueError(f"record.tests must be a list of 1 to {MAX_TESTS} tests")
    found = tuple(_test(f"record.tests[{index}]", test) for index, test in enumerate(tests))
    if not entry and any(not isinstance(test, Script) for test in found):
        raise ValueError("record.entry is missing: a test with call or check needs the name of what it calls")
    return Problem(entry, found, float(tolerance))


def _test(where: str, test: Any) -> Test:
    keys = set(test) if isinstance(test, Mapping) else set()
    if keys == {"check"} and isinstance(test["check"], str):
        try:
            compile(test["check"], where, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{where}.check is not Python: {error}") from None
        return Check(test["check"])
    if keys == {"input", "expected"} and isinstance(test["input"], str) and isinstance(test["expected"], str):
        return Script(test["input"].encode(), test["expected"])
    if {"call", "expected"} <= keys <= {"call", "kwargs", "expected"}:
        args, kwargs = test["call"], test.get("kwargs", {})
        if isinstance(args, list | tuple) and isinstance(kwargs, Mapping):
            try:
                check_depth(test["expected"])
                json.dumps(test["expected"], allow_nan=False)
                return Call(json.dumps({"args": args, "kwargs": kwargs}, allow_nan=False), test["expected"])
            except (NotAValue, TypeError, ValueError, RecursionError) as error:
                raise ValueError(f"{where} holds something that is not JSON: {error}") from None
    raise ValueError(
        f"{where} has {sorted(map(str, keys))}: give call (a list), expected and perhaps kwargs (an object), or input "
        "and expected (texts), or check (a text)"
    )


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
                if language.lower() in _LANGUAGES:
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
