"""The values that a judged program returns, read from their JSON forms, and their equality. Pure.

The forms are those of `inside.forms`. Nothing outside that closed set is ever made here, so no object with methods of
its own reaches a comparison, and no hash table holds keys that a program could choose to collide. Equality is of type
and value: True ≠ 1, and 1 ≠ 1.0 unless a float is expected.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from verifier.builtin.python.inside.forms import MAX_DEPTH

_HEX = re.compile(r"-?0x[0-9a-f]+")
_PLAIN = frozenset({int, str, bool, type(None)})
_UNORDERED = frozenset({"set", "frozenset", "dict"})
_MAX_PAIRED = 300
"""The largest number of members without an exact counterpart for which a counterpart within the tolerance is sought."""


class NotAValue(ValueError):
    """The text or form is not one value as defined here."""


@dataclass(frozen=True, slots=True, eq=False)
class Tagged:
    """A value of a kind without a safe or lossless type of its own; the items of a dict are pairs."""

    kind: str
    items: list[Any]


def parse(text: bytes) -> Any:
    """The JSON of `text`.

    Raises NotAValue for bad UTF-8, NaN or Infinity, a duplicate key, an integer of more than 4,300 digits, a number
    that overflows, and anything after the value.
    """
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_pairs, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise NotAValue(f"{type(error).__name__}: {error}"[:200]) from None


def read(text: bytes) -> Any:
    """The value whose form is `text`. Raises NotAValue as `parse` and `value_of` do."""
    return value_of(parse(text))


def value_of(form: Any, depth: int = 0) -> Any:
    """The value of a form; in records a tuple is a list, since that is how their lists arrive.

    Raises NotAValue for what is not a form, for nesting beyond MAX_DEPTH, and for a key or a member that is there twice
    or could not be one in Python.
    """
    kind = type(form)
    if kind in _PLAIN:
        return form
    if kind is float:
        if not math.isfinite(form):
            raise NotAValue(f'{form} is not a JSON number; write {{"$float": "{form}"}}')
        return form
    if depth >= MAX_DEPTH:
        raise NotAValue(f"nested more than {MAX_DEPTH} deep")
    if kind is list or kind is tuple:
        return [one if type(one) in _PLAIN else value_of(one, depth + 1) for one in form]
    if not isinstance(form, Mapping):
        raise NotAValue(f"{kind.__name__} is not a JSON type")
    tags = [key for key in form if not isinstance(key, str) or key[:1] == "$"]
    if not tags:
        return {key: value_of(one, depth + 1) for key, one in form.items()}
    if len(form) == 1 and isinstance(tags[0], str):
        return _tagged(tags[0], form[tags[0]], depth)
    raise NotAValue(
        f'the key {tags[0]!r:.60} is kept for tags or no text; write {{"$dict": [[key, value], …]}} for such a dict'
    )


def _tagged(tag: str, inner: Any, depth: int) -> Any:
    if tag == "$int" and isinstance(inner, str) and _HEX.fullmatch(inner):
        return int(inner, 16)
    if tag == "$float" and inner in ("nan", "inf", "-inf"):
        return float(inner)
    if tag in ("$bytes", "$decimal") and isinstance(inner, str):
        try:
            return bytes.fromhex(inner) if tag == "$bytes" else _decimal(inner)
        except (ValueError, InvalidOperation):
            raise NotAValue(f"{inner:.60} is not what {tag} holds") from None
    if not isinstance(inner, list | tuple):
        raise NotAValue(f"{tag:.60} with {type(inner).__name__} is not a known tag")
    if tag == "$dict" and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in inner):
        pairs = [[value_of(one, depth + 1) for one in pair] for pair in inner]
        _distinct([key for key, _ in pairs])
        return dict(pairs) if all(isinstance(key, str) for key, _ in pairs) else Tagged("dict", pairs)
    items = value_of(inner, depth)
    if tag == "$tuple":
        return tuple(items)
    if tag in ("$set", "$frozenset"):
        _distinct(items)
        return Tagged(tag[1:], items)
    if tag == "$deque":
        return Tagged("deque", items)
    if tag == "$complex" and len(items) == 2 and all(type(part) in (float, int) for part in items):
        return Tagged("complex", [float(part) for part in items])
    whole = all(type(item) is int for item in items)
    if (tag == "$range" and whole and len(items) == 3 and items[2]) or (
        tag == "$fraction" and whole and len(items) == 2 and items[1] > 0
    ):
        return Tagged(tag[1:], items)
    raise NotAValue(f"{tag:.60} is not a known tag, or does not hold what it must")


def _decimal(text: str) -> Decimal:
    found = Decimal(text)
    if len(text) > 10_000 or found.is_snan():
        raise ValueError("not a decimal number of moderate length")
    return found


def _distinct(members: list[Any]) -> None:
    """Raise NotAValue for members that are equal or have no hash in Python."""
    if len({key_of(member, of_member=True) for member in members}) != len(members):
        raise NotAValue("a set or dict holds a member twice")


def key_of(value: Any, *, of_member: bool = False) -> str:
    """A text that is the same for values of the same type and content, in whatever order a set or dict has them.

    With `of_member`, raises NotAValue for what cannot be a member of a set, and the text of a whole float is that of
    the int, since these are the same member.
    """
    if of_member and (isinstance(value, list | dict) or (isinstance(value, Tagged) and value.kind in _MUTABLE)):
        raise NotAValue(f"a {value.kind if isinstance(value, Tagged) else type(value).__name__} cannot be in a set")
    if of_member and isinstance(value, bool):
        value = int(value)
    if of_member and isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return hex(value)
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({','.join([key_of(one, of_member=of_member) for one in value])})"
    if isinstance(value, dict):
        value = Tagged("dict", [[key, one] for key, one in value.items()])
    if isinstance(value, Tagged):
        keys = [key_of(one, of_member=of_member and value.kind != "dict") for one in value.items]
        return f"{value.kind}({','.join(sorted(keys) if value.kind in _UNORDERED else keys)})"
    return f"{type(value).__name__}:{value!r}"


_MUTABLE = frozenset({"set", "dict", "deque"})


def equal(expected: Any, found: Any, tolerance: float = 0.0) -> bool:
    """Whether `found` equals `expected`, both from `value_of`.

    Where a float is expected, an int will do, and |found − expected| ≤ tolerance · max(1, |expected|) is enough; NaN
    equals NaN, and where −0.0 is expected exactly, 0.0 does not do. Where a list is expected, a tuple will do. Sets and
    dicts have no order.
    """
    if isinstance(expected, float):
        return _near(expected, found, tolerance)
    if isinstance(expected, list | tuple):
        return (
            isinstance(found, tuple if isinstance(expected, tuple) else list | tuple)
            and len(expected) == len(found)
            and all(equal(one, other, tolerance) for one, other in zip(expected, found, strict=True))
        )
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(
            equal(value, found[key], tolerance) for key, value in expected.items()
        )
    if isinstance(expected, Tagged) or isinstance(found, Tagged):
        expected, found = (
            Tagged("dict", [[key, one] for key, one in value.items()]) if isinstance(value, dict) else value
            for value in (expected, found)
        )
        if not (isinstance(expected, Tagged) and isinstance(found, Tagged) and expected.kind == found.kind):
            return False
        if expected.kind == "dict":
            return _same_pairs(expected.items, found.items, tolerance)
        if expected.kind in _UNORDERED:
            return _same_pairs([[one, None] for one in expected.items], [[one, None] for one in found.items], tolerance)
        return equal(expected.items, found.items, tolerance)
    if isinstance(expected, Decimal) and isinstance(found, Decimal):
        return expected == found or (expected.is_nan() and found.is_nan())
    return type(expected) is type(found) and bool(expected == found)


def _near(expected: float, found: Any, tolerance: float) -> bool:
    if isinstance(found, bool) or not isinstance(found, int | float):
        return False
    if not math.isfinite(expected):
        return isinstance(found, float) and (found == expected or (math.isnan(expected) and math.isnan(found)))
    if expected == 0 == tolerance and math.copysign(1, expected) < 0:
        return isinstance(found, float) and found == 0 and math.copysign(1, found) < 0
    try:
        near = abs(found - expected) <= tolerance * max(1.0, abs(expected))
    except OverflowError:  # an int too large for a float
        return False
    return near and (isinstance(found, int) or math.isfinite(found))


def _same_pairs(expected: list[Any], found: list[Any], tolerance: float) -> bool:
    """Whether pairs of distinct keys and their values are the same in some order."""
    if len(expected) != len(found):
        return False
    by_key = {key_of(key): (key, value) for key, value in found}
    rest = []
    for key, value in expected:
        other = by_key.pop(key_of(key), None)
        if other is None:
            rest.append((key, value))
        elif not equal(value, other[1], tolerance):
            return False
    left = list(by_key.values())
    if len(rest) > _MAX_PAIRED and not all(type(key) in (int, float) for key, _ in (*rest, *left)):
        return False
    if len(rest) > _MAX_PAIRED:  # by size, which pairs real numbers in the best way
        rest, left = (sorted(pairs, key=lambda pair: pair[0]) for pairs in (rest, left))
        return all(equal(a, b, tolerance) and equal(x, y, tolerance) for (a, x), (b, y) in zip(rest, left, strict=True))
    for key, value in rest:
        near = [at for at, other in enumerate(left) if equal(key, other[0], tolerance)]
        near = [at for at in near if equal(value, left[at][1], tolerance)]
        if not near:
            return False
        del left[near[0]]
    return True


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
