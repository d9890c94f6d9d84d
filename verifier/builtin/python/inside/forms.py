"""The JSON form of the values that pass between a program, the grader and the verifier: a closed set, never pickle.

    None, bool, str, finite float       itself
    int                                 itself if below 2**63 in size, else {"$int": "0x…"}
    list                                a list
    dict                                an object if every key is a text that does not begin with "$",
                                        else {"$dict": [[key, value], …]}
    tuple, set, frozenset, deque        {"$tuple": […]}, {"$set": […]}, {"$frozenset": […]}, {"$deque": […]}
    bytes                               {"$bytes": "00ff"}
    nan and the infinities              {"$float": "nan" | "inf" | "-inf"}
    complex, range                      {"$complex": [real, imaginary]}, {"$range": [start, stop, step]}
    Fraction, Decimal                   {"$fraction": [numerator, denominator]}, {"$decimal": "1.50"}

An instance of a derived class has the form of its base: a namedtuple is a tuple, a Counter a dict, a bytearray bytes.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would add milliseconds to every verdict
    from typing import Any

MAX_DEPTH = 64
"""The deepest nesting of containers."""


class NoForm(Exception):
    """The value has no form."""


class TooDeep(NoForm):
    """The value is nested deeper than MAX_DEPTH, or holds itself."""


def encode(value: "Any", depth: int = 0) -> "Any":
    """The form of `value`, to be written as JSON. Raises NoForm."""
    kind = type(value)
    if kind is int:
        return value if -(1 << 63) < value < 1 << 63 else {"$int": hex(value)}
    if value is None or kind is str or kind is bool:
        return value
    if kind is float:
        if value - value == 0:  # finite
            return value
        return {"$float": "nan" if value != value else "inf" if value > 0 else "-inf"}
    if depth >= MAX_DEPTH:
        raise TooDeep(f"nested more than {MAX_DEPTH} deep")
    depth += 1
    if kind is list:
        return [encode(one, depth) for one in value]
    if kind is dict:
        if all(type(key) is str and key[:1] != "$" for key in value):
            return {key: encode(one, depth) for key, one in value.items()}
        return {"$dict": [[encode(key, depth), encode(one, depth)] for key, one in value.items()]}
    if kind in (tuple, set, frozenset):
        return {"$" + kind.__name__: [encode(one, depth) for one in value]}
    if kind is bytes:
        return {"$bytes": value.hex()}
    if kind is complex:
        return {"$complex": [encode(value.real), encode(value.imag)]}
    if kind is range:
        return {"$range": [encode(value.start), encode(value.stop), encode(value.step)]}
    return _derived(value, kind, depth)


def _derived(value: "Any", kind: type, depth: int) -> "Any":
    """The form of a value of a class from a module, or derived from a basic type."""
    if isinstance(value, str):
        return str.__str__(value)  # str(value) would be the name of a member of an Enum
    base: Any
    for base in (int, float, complex, tuple, list, dict, set, frozenset, bytes):
        if isinstance(value, base):
            return encode(base(value), depth - 1)
    if kind is bytearray:
        return {"$bytes": value.hex()}
    for module, name in (("collections", "deque"), ("fractions", "Fraction"), ("decimal", "Decimal")):
        found = getattr(sys.modules.get(module), name, None)
        if found is not None and isinstance(value, found):
            if name == "deque":
                return {"$deque": [encode(one, depth) for one in value]}
            if name == "Fraction":
                return {"$fraction": [encode(value.numerator), encode(value.denominator)]}
            return {"$decimal": str(value)}
    raise NoForm(f"{kind.__name__} has no JSON form")


def decode(form: "Any") -> "Any":
    """The value of a form that the verifier has checked."""
    kind = type(form)
    if kind is list:
        return [decode(one) for one in form]
    if kind is not dict:
        return form
    tag = next(iter(form), "")
    if tag[:1] != "$":
        return {key: decode(one) for key, one in form.items()}
    inner = form[tag]
    if tag == "$int":
        return int(inner, 16)
    if tag == "$float":
        return float(inner)
    if tag == "$bytes":
        return bytes.fromhex(inner)
    if tag == "$dict":
        return {decode(key): decode(one) for key, one in inner}
    if tag == "$decimal":
        from decimal import Decimal

        return Decimal(inner)
    items = [decode(one) for one in inner]
    if tag == "$deque":
        from collections import deque

        return deque(items)
    if tag == "$fraction":
        from fractions import Fraction

        return Fraction(*items)
    if tag in ("$complex", "$range"):
        return {"$complex": complex, "$range": range}[tag](*items)
    return {"$tuple": tuple, "$set": set, "$frozenset": frozenset}[tag](items)


def describe(error: BaseException) -> str:
    """Type and message of an exception, at most 500 characters."""
    try:
        return f"{type(error).__name__}: {error}"[:500]
    except Exception:
        return type(error).__name__
