r"""The last box of an answer: what is cut out of the text, and the limits that it must keep before it is read.

Everything here happens on text, before anything is parsed or computed: length, characters, open brackets, and numbers,
exponents and factorials that would be astronomically large.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from verifier.builtin.failed import Failed
from verifier.builtin.math.spelling import SIGNS

MAX_CHARS = 400
"""Characters of one final answer; a record's answer that is longer text raises it to twice its own length."""
MAX_DIGITS = 50
"""Digits of one number; longer literals make arithmetic, not mathematics, expensive."""
MAX_EXPONENT = 10_000
MAX_FACTORIAL = 5_000
MAX_DEPTH = 30
"""Brackets open at once."""

_BOXED = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")


def last_boxed(text: str, longest: int = MAX_CHARS) -> str:
    r"""The content of the last `\boxed{…}` (or `\fbox{…}`) in `text`; only the last one counts, whatever came before.

    A single `\boxed 7` without braces holds the next sign. Raises Failed: no_answer, malformed (a box without braces
    beside others, or braces that do not close), too_long (`longest` characters and more).
    """
    boxes = [found.end() for found in _BOXED.finditer(text)]
    if not boxes:
        raise Failed("no_answer", r"no \boxed{…}")
    if len(boxes) == 1 and text[boxes[0] : boxes[0] + 1] != "{":
        bare = re.match(r"-?\d+(?:\.\d+)?(?![\d.])|[A-Za-z](?![A-Za-z])", text[boxes[0] :])
        if bare is None:
            raise Failed("malformed", r"\boxed without braces")
        return bare[0]
    answer, _ = _content(text, boxes[-1], longest)
    for start in boxes[:-1]:
        # 6, [5], 7 is three answers; a box around nothing but a box is one.
        if start > boxes[-1] - 2 * longest and text[start : start + 1] == "{":
            outer, end = _content(text, start, longest)
            if end > boxes[-1] and re.sub(r"\\[bf]+ox(?:ed)?|[{}\s]", "", outer) != re.sub(r"[{}\s]", "", answer):
                raise Failed("malformed", "a box within a box")
    return answer


def _content(text: str, start: int, longest: int) -> tuple[str, int]:
    """What the braces that open at `start` hold, and where they close. Raises Failed: malformed, too_long."""
    if text[start : start + 1] != "{":
        raise Failed("malformed", r"\boxed without braces")
    depth, at = 0, start
    while at < len(text):
        if at - start > 2 * longest:
            raise Failed("too_long", f"more than {2 * longest} characters in the last box")
        sign = text[at]
        if sign == "\\":
            at += 1  # an escaped brace is not a brace
        elif sign == "{":
            depth += 1
        elif sign == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : at], at
        at += 1
    raise Failed("malformed", "a box that does not close")


def admitted(content: str, longest: int = MAX_CHARS, also: str = "") -> str:
    """The answer without the white space and full stops around it, if its length and characters are allowed.

    Allowed are printable ASCII, the signs that have a LaTeX spelling, and the characters of `also` (the record's
    answer). Raises Failed: empty, too_long, bad_character.
    """
    if len(content) > longest:
        raise Failed("too_long", f"{len(content)} characters, at most {longest}")
    odd = next(
        (sign for sign in content if not (" " <= sign <= "~" or sign in "\n\t" or sign in SIGNS or sign in also)), None
    )
    if odd is not None:
        raise Failed("bad_character", f"{odd!a} is not part of an answer")
    text = content.strip().rstrip(". ")
    if not text.replace("$", "").strip():
        raise Failed("empty", "nothing in the box")
    return text


def check_cost(text: str) -> None:
    """Raises Failed (too_expensive, malformed) for text whose value would be astronomically large."""
    _check_brackets(text)
    _check_cost(text)


def _check_brackets(text: str) -> None:
    depth = 0
    for sign in re.sub(r"\\.", "", text):
        depth += (sign in "{([") - (sign in "})]")
        if depth > MAX_DEPTH:
            raise Failed("too_expensive", f"more than {MAX_DEPTH} open brackets")


def _check_cost(text: str) -> None:
    """Refuse what would be astronomically large; the deadline of the worker catches what passes here."""
    longest = max((len(digits) for digits in re.findall(r"\d+", text.replace(",", ""))), default=0)
    if longest > MAX_DIGITS:
        raise Failed("too_expensive", f"a number of {longest} digits, at most {MAX_DIGITS}")
    for found in re.finditer(r"(?<![\dA-Za-z])[\d.]+[eE][+-]?(\d+)(?![\dA-Za-z.])", text):
        if not 0 < int(found[1]) <= MAX_EXPONENT:
            raise Failed("malformed", f"an exponent of 0, or over {MAX_EXPONENT}, in exponent notation")
    plain = text.replace(",", "").replace(" ", "")
    plain = plain.replace("**", "^")
    for exponent in _exponents(plain):
        _check_exponent(exponent)
    for found in re.finditer(r"(\d+|[)}\]])!", plain):
        if not found[1].isdigit() and not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", plain[: found.start()])):
            raise Failed("too_expensive", "the factorial of a computed number")
        if found[1].isdigit() and int(found[1]) > MAX_FACTORIAL:
            raise Failed("too_expensive", f"{found[1]}!, at most {MAX_FACTORIAL}!")
    if "!!" in plain:
        raise Failed("too_expensive", "a factorial of a factorial")


def _exponents(plain: str) -> Iterator[str]:
    """What stands after each `^`: a group, or one sign (a number for a careless writer)."""
    for found in re.finditer(r"\^", plain):
        at = found.end()
        if plain[at : at + 1] not in ("{", "("):
            yield (re.match(r"-?\d+|\\[A-Za-z]+|.", plain[at:]) or [""])[0] + ("^" if _chained(plain, at) else "")
            continue
        depth = 0
        for end in range(at, len(plain)):
            depth += (plain[end] in "{(") - (plain[end] in "})")
            if depth == 0:
                yield plain[at + 1 : end]
                break


def _chained(plain: str, at: int) -> bool:
    """Whether a bare exponent is itself raised: 9^9^9."""
    return re.match(r"-?\d+\^", plain[at:]) is not None


def _check_exponent(exponent: str) -> None:
    if any(int(digits) > MAX_EXPONENT for digits in re.findall(r"\d+", exponent)):
        raise Failed("too_expensive", f"an exponent over {MAX_EXPONENT}")
    if "!" in exponent and not re.search(r"[a-z]!", exponent):
        raise Failed("too_expensive", "a factorial in an exponent")
    if "^" not in exponent:
        return
    small = re.fullmatch(r"(\d+)\^\{?(\d+)\}?", exponent)
    if small is not None and int(small[2]) * len(small[1]) <= 2 * len(str(MAX_EXPONENT)):
        if int(small[1]) ** int(small[2]) <= MAX_EXPONENT:
            return
        raise Failed("too_expensive", f"an exponent over {MAX_EXPONENT}")
    # e^{x^2} is an answer; a tower of numbers, or of three storeys, is an attack.
    if not re.search(r"[A-Za-z]\)?\^", exponent) or exponent.count("^") > 2:
        raise Failed("too_expensive", "a tower of exponents")
