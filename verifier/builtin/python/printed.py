"""The comparison of what a program printed with what was expected. Pure."""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_WHOLE = re.compile(r"[+-]?[0-9]+")


def same_text(expected: str, found: bytes, tolerance: float = 0.0) -> bool:
    """Whether a program printed `expected`; bytes that are not UTF-8 equal nothing.

    Without a tolerance, the lines must be the same up to white space at their ends and empty lines at the end. With
    one, the words must be the same, where two numbers are the same within the tolerance (see `same_word`).
    """
    try:
        text = found.decode("utf-8")
    except UnicodeDecodeError:
        return False
    if tolerance == 0 or _lines(expected) == _lines(text):
        return _lines(expected) == _lines(text)
    words, others = expected.split(), text.split()
    return len(words) == len(others) and all(map(same_word, words, others, [tolerance] * len(words)))


def same_word(expected: str, found: str, tolerance: float) -> bool:
    """Whether two words are equal, or numbers with |found − expected| ≤ tolerance · max(1, |expected|).

    Two integers are compared by their absolute difference: a tolerance for rounding must not make large counts equal.
    """
    if expected == found:
        return True
    if not (_NUMBER.fullmatch(expected) and _NUMBER.fullmatch(found)):
        return False
    whole = bool(_WHOLE.fullmatch(expected) and _WHOLE.fullmatch(found))
    if whole and max(len(expected), len(found)) > 4000:  # beyond what int() reads
        return _digits(expected) == _digits(found)
    if whole:
        return abs(int(found) - int(expected)) <= tolerance
    one, other = float(expected), float(found)
    return math.isfinite(one) and math.isfinite(other) and abs(other - one) <= tolerance * max(1.0, abs(one))


def _digits(number: str) -> str:
    return ("-" if number[0] == "-" else "") + number.lstrip("+-0")


def _lines(text: str) -> list[str]:
    lines = [line.rstrip(" \t\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines
