r"""Units after a number: `5 cm`, `36\pi\text{ cm}^2`, `50\%`, `\$5`, `90^\circ`. Their normal forms, one table."""

from __future__ import annotations

import re

from verifier.builtin.math.spelling import Token, Unreadable

_NAMES = {
    "mm": "mm millimeter millimetre", "cm": "cm centimeter centimetre", "m": "m meter metre",
    "km": "km kilometer kilometre", "in": "in inch inches", "ft": "ft foot feet", "yd": "yd yard", "mi": "mi mile",
    "s": "s sec second", "min": "min minute", "h": "h hr hour", "day": "day", "week": "week", "month": "month",
    "year": "year yr", "degree": "degree deg", "dollar": "dollar dollars usd buck", "cent": "cent",
    "euro": "euro eur", "pound": "pound lb lbs", "g": "g gram gramme", "kg": "kg kilogram", "mg": "mg milligram",
    "oz": "oz ounce", "L": "l liter litre", "mL": "ml milliliter millilitre", "unit": "unit", "radian": "radian rad",
    "point": "point", "person": "person people", "mph": "mph", "%": "percent", "km/h": "kmh kph", "K": "kelvin",
    "C": "celsius", "F": "fahrenheit", "J": "joule", "N": "newton", "W": "watt", "A": "ampere amp", "V": "volt",
    "Hz": "hertz hz", "mol": "mol mole", "Pa": "pascal",
}  # fmt: skip
UNITS = {word: name for name, words in _NAMES.items() for word in words.split()}
UNITS |= {f"{word}s": name for word, name in list(UNITS.items()) if len(word) > 2 and not word.endswith("s")}
"""Word → normal form of every unit that is known."""
_POWERS = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cu": "3", "cubed": "3"}


def unit_of(found: list[Token]) -> tuple[list[Token], str]:
    r"""(tokens before the unit, the unit in normal form, "" where there is none).

    Words that are no known unit are kept as they are, in lower case: `5 \text{ apples}` has the unit apples.
    Raises Unreadable for words in the middle of an answer.
    """
    end = len(found)
    start = end
    while start > 1 and _part(found, start - 1):
        start -= 1
    while start < end and not _begins(found, start):
        start += 1
    if start == end:
        if any(token.kind == "word" for token in found):
            raise Unreadable("words inside")
        return found, ""
    words: list[str] = []
    for token in found[start:end]:
        words += re.findall(r"[A-Za-z]+|[0-9]+|/|\^|-|%", token.text) if token.kind == "word" else [token.text]
    if any(token.kind == "word" for token in found[:start]):
        raise Unreadable("words inside")
    return found[:start], _normal(words)


def _begins(found: list[Token], at: int) -> bool:
    """Whether a unit can begin here: a word in \\text{…}, or a run of letters that is a unit and stands after a number
    with a space or is longer than one letter."""
    token = found[at]
    if token.kind == "word":
        return True
    return (
        token.kind == "run"
        and (token.text.lower() in UNITS or token.text.lower() in _POWERS)
        and (found[at - 1].kind == "number" or token.space)
    )


def _part(found: list[Token], at: int) -> bool:
    token = found[at]
    if token.kind in ("word", "run"):
        return True
    if token.kind == "letter":
        return found[at - 1].text == "/" and token.text in UNITS
    if token.kind == "number":
        return token.text in ("2", "3") and found[at - 1].text in ("^", "{")
    return token.kind == "sign" and token.text in ("^", "{", "}", "/")


def _normal(words: list[str]) -> str:
    """`square centimeters`, `cm^{2}`, `sq cm` → cm^2; `miles per hour` → mi/h."""
    said = [word.lower() if word.lower() in UNITS or word.lower() in _POWERS or len(word) > 2 else word
            for word in words if word not in ("{", "}", "^", "-")]  # fmt: skip
    parts: list[str] = []
    pending = ""
    for word in said:
        if word in ("/", "per"):
            parts.append("/")
        elif word in ("2", "3"):
            if not parts or parts[-1] == "/":
                raise Unreadable("a power of no unit")
            parts[-1] += f"^{word}"
        elif word in _POWERS:
            if word.endswith("ed") and parts:
                parts[-1] += f"^{_POWERS[word]}"
            else:
                pending = _POWERS[word]
        else:
            name = UNITS.get(word, word)
            parts.append(f"{name}^{pending}" if pending else name)
            pending = ""
    if pending:
        raise Unreadable("a power of no unit")
    text = " ".join(parts).replace(" / ", "/")
    return {"mi/h": "mph"}.get(text, text)


def currency(found: list[Token]) -> tuple[str, list[Token]]:
    """(currency that stands before or after the number, the other tokens)."""
    signs = {"dollar": "dollar", "euro": "euro", "pounds": "pound sterling"}
    for at in (0, len(found) - 1, 1):
        if 0 <= at < len(found) and found[at].kind == "command" and found[at].text in signs:
            if 0 < at < len(found) - 1 and found[0].text not in ("-", "+"):
                continue
            return signs[found[at].text], [*found[:at], *found[at + 1 :]]
    return "", found


def is_known(unit: str) -> bool:
    """Whether every word of a unit in normal form is a known one, per cent excepted: it changes the value."""
    words = [word.split("^")[0] for word in re.split(r"[ /]+", unit)]
    return unit != "%" and all(word in _NAMES for word in words)
