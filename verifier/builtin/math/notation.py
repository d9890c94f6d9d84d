r"""The structure of a cleaned final answer: written-out numbers with their units, words, members and symbols.

Numbers become exact fractions, so that they are compared exactly and never reach the computer algebra. Pure functions.
"""

from __future__ import annotations

import re
from fractions import Fraction

_COMMAND = re.compile(r"\\([A-Za-z]+)")
_WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox|operatorname)\s*\{([^{}]*)\}")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_UNITS = (
    "mm cm m km in inch inches ft foot feet yd yard yards mile miles mph kmh second seconds s minute minutes min hour "
    "hours h day days week weeks month months year years degree degrees dollar dollars cent cents g kg gram grams lb "
    "pound pounds oz ounce ounces liter liters litre litres ml unit units square cubic sq cu meter meters metre metres "
    "centimeter centimeters kilometer kilometers per"
)
UNITS = frozenset(_UNITS.split())
"""Words that may stand as a unit after a number whose record has no unit."""


def number(text: str) -> tuple[Fraction, str] | None:
    r"""(value, unit) if `text` is one written-out number, None if it is anything else.

    A number is an integer (`1,000` too), a decimal, `a/b`, `\frac{a}{b}`, a mixed number, or `a \times 10^{k}`; a unit
    is `%`, degrees, or words in `\text{…}`. `2^{10}`, `6!`, `2+3` and `\sqrt{4}` are unfinished work, not numbers.
    """
    text, unit = _unit(text)
    while (inner := _unwrapped(text)) is not None:
        text = inner
    sign = -1 if text.startswith("-") else 1
    body = text[1:].strip() if text[:1] in "+-" else text
    value = _unsigned(body)
    return None if value is None else (sign * value, unit)


def known_unit(unit: str) -> bool:
    """Whether every word of `unit` is in UNITS."""
    return unit not in ("%", "percent") and all(word.rstrip("23") in UNITS for word in re.split(r"[ /]+", unit))


def words(text: str) -> str | None:
    r"""The words of an answer that is text (`\text{Friday}`, `(B)`), without wrappers; None if it is anything else."""
    bare = _WORDS.sub(lambda found: found[1], text).strip()
    wrapped = bare != text
    bare = re.sub(r"^\(([A-Za-z])\)$", r"\1", bare)
    if re.fullmatch(r"[A-Z]", bare) or (wrapped and re.fullmatch(r"[A-Za-z][A-Za-z .'-]*", bare)):
        return " ".join(bare.split())
    return None


def same_text(one: str, other: str) -> bool:
    """Equal up to white space and braces around single signs."""
    return _squeezed(one) == _squeezed(other)


def parts(text: str) -> tuple[str, list[str]]:
    """(outer brackets, members at top level): `(1,2)` gives `()` and [1, 2]; a list without brackets gives '' ."""
    brackets = ""
    if len(text) > 2 and text[0] in "([" and text[-1] in ")]" and _closes_at_end(text):
        brackets, text = text[0] + text[-1], text[1:-1]
    return brackets, [member.strip() for member in _split(text)]


def commands(text: str) -> frozenset[str]:
    """Names of the LaTeX commands in `text`."""
    return frozenset(_COMMAND.findall(text))


def symbols(text: str) -> frozenset[str]:
    """Letters and commands outside words, which an algebra system takes for symbols, with their case."""
    bare = _WORDS.sub(" ", text)
    return frozenset(_COMMAND.sub(" ", bare)) & frozenset(_LETTERS) | commands(bare)


def _unit(text: str) -> tuple[str, str]:
    """(text without its unit, unit in plain words)."""
    found = re.search(r"(?:\\?%|\^\{?\s*\\circ\s*\}?|\\degree|\\circ)$", text)
    if found is not None:
        return text[: found.start()].strip(), "%" if "%" in found[0] else "degrees"
    found = re.search(r"\\(?:text|textrm|mathrm|mbox)\s*\{([A-Za-z /.]+)\}(?:\^\{?([23])\}?)?$", text)
    if found is not None and text[: found.start()].strip():
        unit = " ".join(found[1].lower().replace(".", "").split()) + (found[2] or "")
        return text[: found.start()].strip(), {"percent": "%", "degree": "degrees"}.get(unit, unit)
    return text, ""


def _unwrapped(text: str) -> str | None:
    """The inside of one pair of ( ) or { } around everything, of \\text{…} or \\mathrm{…} around a number."""
    found = re.fullmatch(r"\\(?:mathrm|mathbf|textbf|text)\s*\{([-\d.,/ ]+)\}", text)
    if found is not None:
        return found[1].strip()
    if len(text) > 2 and text[0] + text[-1] in ("()", "{}") and _closes_at_end(text):
        return text[1:-1].strip()
    return None


def _unsigned(body: str) -> Fraction | None:
    if re.search(r"\d \d", body):
        return None  # 1 2/3 is not 12/3
    plain = body.replace(" ", "")
    if re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", plain):
        plain = plain.replace(",", "")
    if re.fullmatch(r"\d+(\.\d*)?|\.\d+", plain):
        return Fraction(plain if plain[-1] != "." else plain[:-1])
    found = re.fullmatch(r"(\d+)/(\d+)", plain) or re.fullmatch(r"\\frac(\d)(\d)", plain)
    if found is None:
        found = re.fullmatch(r"\\frac(?:\{(-?\d+)\}|(\d))(?:\{(-?\d+)\}|(\d))", plain)
    if found is not None:
        top, bottom = (int(part) for part in found.groups() if part is not None)
        return Fraction(top, bottom) if bottom else None
    found = re.fullmatch(r"(\d+)\\frac(?:\{(\d+)\}|(\d))(?:\{(\d+)\}|(\d))", plain)
    if found is not None:
        whole, top, bottom = (int(part) for part in found.groups() if part is not None)
        return whole + Fraction(top, bottom) if bottom else None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(?:\\times|\\cdot)10\^(?:\{(-?\d{1,3})\}|(\d))", plain)
    if found is not None:
        return Fraction(found[1]) * Fraction(10) ** int(found[2] or found[3])
    return None


def _closes_at_end(text: str) -> bool:
    """Whether the bracket that opens `text` is closed by its last sign, of whatever kind: [1,2) is one interval."""
    depth = 0
    for at, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if depth == 0:
            return at == len(text) - 1
    return False


def _split(text: str) -> list[str]:
    members, depth, start = [], 0, 0
    for at, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if depth == 0 and sign in ",;":
            members.append(text[start:at])
            start = at + 1
    return [*members, text[start:]]


def _squeezed(text: str) -> str:
    kept = re.sub(r"(?<=\d)\s+(?=\d)", "_", text)  # 1 2 is not 12
    return re.sub(r"\{([A-Za-z0-9])\}", r"\1", re.sub(r"\s+", "", kept))
