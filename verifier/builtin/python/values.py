"""The JSON values that a judged program returns: strict parsing and equality.

Only JSON leaves the sandbox, so no object with methods of its own ever reaches a comparison. Equality is of type and
value: True ≠ 1, 1 ≠ 1.0 unless a float is expected, NaN and infinities are not values, lists equal tuples. Pure.
"""

from __future__ import annotations

import json
import math
from typing import Any

MAX_DEPTH = 64
"""The deepest nesting of lists and objects."""


class NotAValue(ValueError):
    """The text is not one JSON value as defined here."""


def read(text: bytes) -> Any:
    """The value of `text`.

    Raises NotAValue for bad UTF-8, NaN or Infinity, a duplicate key, an integer of more than 4,300 digits, a number
    that overflows, nesting beyond MAX_DEPTH, and anything after the value.
    """
    try:
        value = json.loads(text.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_pairs, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise NotAValue(f"{type(error).__name__}: {error}"[:200]) from None
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raise NotAValue for nesting beyond MAX_DEPTH, without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | tuple | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise NotAValue(f"nested more than {MAX_DEPTH} deep")


def equal(expected: Any, found: Any, tolerance: float = 0.0) -> bool:
    """Whether `found` (from `read`) equals `expected`.

    Where a float is expected, an int will do, and |found − expected| ≤ tolerance · max(1, |expected|) is enough.
    """
    if isinstance(expected, float):
        if isinstance(found, bool) or not isinstance(found, int | float):
            return False
        try:
            near = abs(found - expected) <= tolerance * max(1.0, abs(expected))
        except OverflowError:  # an int too large for a float
            return False
        return near and math.isfinite(found)
    if isinstance(expected, list | tuple):
        return (
            isinstance(found, list | tuple)
            and len(expected) == len(found)
            and all(equal(one, other, tolerance) for one, other in zip(expected, found, strict=True))
        )
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and expected.keys() == found.keys()
            and all(equal(value, found[key], tolerance) for key, value in expected.items())
        )
    return type(expected) is type(found) and bool(expected == found)


def same_text(expected: str, found: bytes) -> bool:
    """Whether a program printed `expected`, ignoring white space at line ends and empty lines at the end.

    Bytes that are not UTF-8 equal nothing.
    """
    try:
        text = found.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return _lines(expected) == _lines(text)


def _lines(text: str) -> list[str]:
    lines = [line.rstrip(" \t\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a value")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} overflows")
    return number


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object holds a key twice")
    return found
