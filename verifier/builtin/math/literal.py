r"""Numbers that are written out: integers, decimals, periods, fractions, mixed numbers, scientific notation.

Their values are exact. `2^{10}`, `6!`, `2+3` and `\sqrt{4}` are work left undone and no numbers here.
"""

from __future__ import annotations

import re
from fractions import Fraction

from verifier.builtin.math.spelling import Token, Unreadable


def thousands(found: list[Token]) -> list[Token] | None:
    """A list in which every comma stands between digits and in groups of three without spaces: `1,000` is one number.

    Where a comma with a space after it separates members too (`1,000, 2,000`), only the tight ones join.
    """
    joined: list[Token] = []
    at, changed = 0, False
    while at < len(found):
        token = found[at]
        if (
            token.kind == "number"
            and re.fullmatch(r"\d{1,3}", token.text)
            and (token.text == "0" or token.text[0] != "0")
        ):
            digits, end = token.text, at + 1
            while (
                end + 1 < len(found) and found[end].text == "," and not found[end].space
                and found[end + 1].kind == "number" and not found[end + 1].space
                and re.fullmatch(r"\d{3}(\.\d+)?", found[end + 1].text)
            ):  # fmt: skip
                digits, end = digits + found[end + 1].text, end + 2
            if end > at + 1:
                joined.append(Token("number", digits, token.space))
                at, changed = end, True
                continue
        joined.append(token)
        at += 1
    return joined if changed else None


def literal(found: list[Token]) -> Fraction | None:
    r"""The value of a written-out number, None for anything else.

    A number is an integer, a decimal (periodic too), `a/b`, `\frac{a}{b}`, a mixed number, or scientific notation.
    `2^{10}`, `6!`, `2+3` and `\sqrt{4}` are work left undone.
    """
    while len(found) > 2 and (found[0].text, found[-1].text) in (("(", ")"), ("{", "}")) and wraps(found):
        found = found[1:-1]
    sign = 1
    if found and found[0].text in ("+", "-") and found[0].kind == "sign":
        sign, found = (-1 if found[0].text == "-" else 1), found[1:]
        while len(found) > 2 and (found[0].text, found[-1].text) == ("{", "}") and wraps(found):
            found = found[1:-1]
    if not found:
        return None
    joined = thousands(found)
    value = _unsigned(joined if joined is not None else found)
    return None if value is None else sign * value


def wraps(found: list[Token]) -> bool:
    depth = 0
    for at, token in enumerate(found):
        depth += (token.text in "({" and token.kind == "sign") - (token.text in ")}" and token.kind == "sign")
        if depth == 0:
            return at == len(found) - 1
    return False


def decimal_value(text: str) -> Fraction:
    """The exact value of a number token. Raises Unreadable for an exponent of more than five digits."""
    if len(re.split("[eE]", text)[-1].lstrip("+-")) > 5 and re.search("[eE]", text):
        raise Unreadable("an exponent of more than five digits")
    return Fraction(text[:-1] if text.endswith(".") else text)


def _unsigned(found: list[Token]) -> Fraction | None:
    texts = [token.text for token in found]
    kinds = [token.kind for token in found]
    if kinds == ["number"]:
        return decimal_value(texts[0])
    if kinds[:2] == ["number", "command"] and texts[1] == "overline" and texts[2:3] == ["{"] and texts[-1] == "}":
        if len(found) == 5 and kinds[3] == "number" and texts[3].isdigit() and "." in texts[0]:
            return _periodic(texts[0], texts[3])
        return None
    if kinds == ["number", "sign", "number"] and texts[1] == "/" and texts[0].isdigit() and texts[2].isdigit():
        return Fraction(int(texts[0]), int(texts[2])) if int(texts[2]) else None
    if kinds == ["number", "number", "sign", "number"] and texts[2] == "/" and found[1].space:
        whole, top, bottom = texts[0], texts[1], texts[3]
        if whole.isdigit() and top.isdigit() and bottom.isdigit() and 0 < int(top) < int(bottom):
            return int(whole) + Fraction(int(top), int(bottom))
        return None
    if texts and texts[0] == "frac" and kinds[0] == "command":
        pair = _two_integers(found[1:])
        return Fraction(*pair) if pair is not None and pair[1] else None
    if len(texts) > 1 and kinds[0] == "number" and texts[0].isdigit() and texts[1] == "frac":
        pair = _two_integers(found[2:])
        if pair is not None and pair[0] > 0 and pair[1] > 0:
            return int(texts[0]) + Fraction(*pair)
        return None
    if kinds[0] == "number" and texts[1:4] in (["times", "10", "^"], ["cdot", "10", "^"], ["*", "10", "^"]):
        rest = [text for text in texts[4:] if text not in ("{", "}", "(", ")")]
        digits = "".join(rest)
        if re.fullmatch(r"[-+]?\d{1,3}", digits) and len(rest) <= 2:
            return decimal_value(texts[0]) * Fraction(10) ** int(digits)
    return None


def _periodic(start: str, period: str) -> Fraction:
    head, _, tail = start.partition(".")
    shift = 10 ** len(tail)
    return Fraction(int((head or "0") + tail), shift) + Fraction(int(period), shift * (10 ** len(period) - 1))


def _two_integers(found: list[Token]) -> tuple[int, int] | None:
    """The integers of `{a}{b}`, `ab` (two digits) or a mixture, when nothing else is there."""
    values: list[int] = []
    at = 0
    while at < len(found) and len(values) < 2:
        if found[at].text == "{":
            end = at + 1
            while end < len(found) and found[end].text != "}":
                end += 1
            inside = [token.text for token in found[at + 1 : end] if token.text != "+"]
            text = "".join(inside)
            if not re.fullmatch(r"-?\d+", text) or len(inside) > 2:
                return None
            values.append(int(text))
            at = end + 1
        elif found[at].kind == "number" and found[at].text.isdigit():
            digits = found[at].text
            if len(digits) == 2 and not values:
                values += [int(digits[0]), int(digits[1])]
            elif len(digits) == 1:
                values.append(int(digits))
            else:
                return None
            at += 1
        else:
            return None
    return (values[0], values[1]) if len(values) == 2 and at == len(found) else None
