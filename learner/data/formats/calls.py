"""Tests made of inputs and outputs: calls of a function, and stdin with stdout. Prompts for both.

Values that JSON lacks are tagged as the verifier `python` reads them. A call with two right values becomes a check:
source with the values as literals.
"""

from __future__ import annotations

import math
import re
from typing import Any

from learner.data.formats.fields import NotOfFormat

ACCEPTED = '''\
def _equal(found, expected):
    """Equality of type and value, where lists equal tuples and an int will do where a float is expected."""
    if isinstance(expected, list):
        return (
            isinstance(found, (list, tuple))
            and len(found) == len(expected)
            and all(_equal(one, other) for one, other in zip(found, expected))
        )
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and found.keys() == expected.keys()
            and all(_equal(found[key], value) for key, value in expected.items())
        )
    if isinstance(expected, float):
        return type(found) in (int, float) and found == expected
    return type(found) is type(expected) and found == expected


def _accept(found, *accepted):
    assert any(_equal(found, expected) for expected in accepted), f"{found!r:.200} is not what was expected"


inf, nan = float("inf"), float("nan")
'''
"""Setup of records that have checks made by `calls`."""

_INTEGER = re.compile(r"-?[0-9]{1,18}")


def calls(field: str, inputs: Any, outputs: Any, *, apps: bool = True) -> tuple[list[dict[str, Any]], str]:
    """(tests, setup) of a function's argument lists and results. Raises NotOfFormat.

    With `apps`, by the customs of APPS and of what was made from it. Results are often wrapped in a list of one
    element: where all of a row are, nothing tells whether the function returns lists, and both are accepted, as in
    APPS's own judge (which also takes the first element of longer lists: not done here). As there, the texts of
    integers that are all keys of the first argument or of the result are these integers.
    """
    tests: list[dict[str, Any]] = []
    wrapped = apps and bool(outputs) and all(isinstance(output, list) and len(output) == 1 for output in outputs)
    for arguments, output in zip(inputs, outputs, strict=True):
        if not isinstance(arguments, list):
            what = f"{type(arguments).__name__}, expected the list of a call's arguments"
            raise NotOfFormat(field, f"has as an input {what}: correct or remove the row")
        given, accepted = arguments, [output, output[0]] if wrapped else [output]
        if apps:
            given = [_integer_keys(one) for one in arguments[:1]] + arguments[1:]
            accepted = [_integer_keys(one) for one in accepted]
        if len(accepted) == 1:
            tests.append({"call": form(given), "expected": form(accepted[0])})
        else:
            tests.append({"check": f"_accept(candidate(*{given!r}), *{accepted!r})"})
    return tests, ACCEPTED if any("check" in test for test in tests) else ""


def scripts(field: str, inputs: Any, outputs: Any) -> list[dict[str, Any]]:
    """Tests of the whole program by stdin and stdout, each a text or a list of lines. Raises NotOfFormat."""
    return [
        {"input": _lines(field, given), "expected": _lines(field, printed)}
        for given, printed in zip(inputs, outputs, strict=True)
    ]


def paired(field: str, inputs: Any, outputs: Any) -> None:
    """Raise NotOfFormat unless both are lists of one length."""
    for name, value in (("inputs", inputs), ("outputs", outputs)):
        if not isinstance(value, list):
            raise NotOfFormat(field, f"has no list of {name}: correct or remove the row")
    if len(inputs) != len(outputs):
        raise NotOfFormat(field, f"has {len(inputs)} inputs and {len(outputs)} outputs: correct or remove the row")


def entry_of(name: str, code: str) -> str:
    """How tests call `name`: as a method of Solution where `code`, what the model is given, has that class."""
    return f"Solution.{name}" if re.search(r"^\s*class\s+Solution\b", code, re.MULTILINE) else name


def prompt_of(question: str, starter_code: str, name: str) -> str:
    """The question, the code to start with, and whether to write a function or a program (`name` empty)."""
    parts = [question.rstrip()]
    if starter_code.strip():
        parts.append(f"Start with this code:\n\n```python\n{starter_code.strip()}\n```")
    if not name:
        parts.append("Read from standard input and write to standard output.")
    elif name not in "\n".join(parts):
        parts.append(f"Write the function `{name}`.")
    return "\n\n".join(parts) + "\n"


def _lines(field: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(line, str | int | float) for line in value):
        raise NotOfFormat(
            field,
            f"has {type(value).__name__} as an input or output, expected text or a list of lines: correct the row",
        )
    return "\n".join(map(str, value))


def _integer_keys(value: Any) -> Any:
    if isinstance(value, dict) and value and all(_INTEGER.fullmatch(key) for key in value):
        return {int(key): below for key, below in value.items()}
    return value


def form(value: Any) -> Any:
    """The tagged JSON of a value for a test with `call`. Raises ValueError for a type that it has no form for."""
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int):
        return value if -(2**63) < value < 2**63 else {"$int": hex(value)}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, list):
        return [form(one) for one in value]
    if isinstance(value, tuple | set | frozenset):
        return {f"${type(value).__name__}": [form(one) for one in value]}
    if isinstance(value, bytes):
        return {"$bytes": value.hex()}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: form(one) for key, one in value.items()}
        return {"$dict": [[form(key), form(one)] for key, one in value.items()]}
    raise ValueError(f"{type(value).__name__} has no form in JSON")
