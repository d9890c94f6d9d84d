r"""The extraction and cleaning of final answers: the last `\boxed{…}`, and limits on what it may contain.

These checks run before any computer algebra sees the answer, because algebra is lenient (it takes 3 = 5 for 5 and a sum
for its value) and can be made to compute for hours. They look at the text only: length, characters, brackets, and the
size of literals, exponents and factorials. Pure functions; nothing is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from verifier.builtin.failed import Failed

MAX_CHARS = 400
"""Characters of one final answer."""
MAX_DIGITS = 50
"""Digits of one number; longer literals would make mere arithmetic expensive."""
MAX_EXPONENT = 10_000
MAX_FACTORIAL = 5_000
MAX_DEPTH = 30
"""Brackets open at once."""

_BOXED = re.compile(r"\\boxed(?![A-Za-z])\s*")
_SIGNS = str.maketrans(
    {"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "π": r"\pi ", "∞": r"\infty "}
    | {"°": r"^{\circ}", "≤": r"\le ", "≥": r"\ge ", "\u00a0": " "}
)
_SPACING = re.compile(r"\\(?:[,;:! ]|quad\b|qquad\b|displaystyle\b|left\b|right\b|bigl?\b|bigr\b|Bigl?\b|Bigr\b)|~")

_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi varphi chi psi omega"
)
COMMANDS = frozenset(
    f"{_GREEK} {_GREEK.title()} frac sqrt cdot times div pm mp infty text textbf textit textrm mathrm mbox circ "
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp cup cap setminus emptyset varnothing in "
    "le leq ge geq lt gt begin end overline vec hat bar mathbf mathbb lvert rvert vert mid prime ldots dots".split()
)
"""LaTeX commands that an answer may use; others only where the record's own answer uses them. Left out on purpose:
commands for unfinished work (sum, prod, int, lim, binom, gcd, max, mod …) and for no exact value (approx, sim, ne)."""


def last_boxed(text: str) -> str:
    r"""The content of the last `\boxed{…}` in `text`; earlier ones are ignored.

    Raises Failed: no_answer, malformed (no braces, or they do not close), too_long.
    """
    boxes = [found.end() for found in _BOXED.finditer(text)]
    if not boxes:
        raise Failed("no_answer", r"no \boxed{…}")
    answer, _ = _content(text, boxes[-1])
    for start in boxes[:-1]:
        # \boxed{6, \boxed{5}, 7} holds three answers; a box around nothing but a box is one.
        if start > boxes[-1] - 2 * MAX_CHARS and text[start : start + 1] == "{":
            outer, end = _content(text, start)
            if end > boxes[-1] and re.sub(r"\\boxed|[{}\s]", "", outer) != re.sub(r"[{}\s]", "", answer):
                raise Failed("malformed", "a box within a box")
    return answer


def _content(text: str, start: int) -> tuple[str, int]:
    """The content of the braces that open at `start`, and where they close. Raises Failed: malformed, too_long."""
    if text[start : start + 1] != "{":
        raise Failed("malformed", r"\boxed without braces")
    depth, at = 0, start
    while at < len(text):
        if at - start > 2 * MAX_CHARS:
            raise Failed("too_long", f"more than {2 * MAX_CHARS} characters in the last box")
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


def clean(content: str) -> str:
    """The answer with common signs written in LaTeX and typography removed, within all limits.

    Raises Failed: empty, too_long, bad_character, too_expensive, malformed.
    """
    if len(content) > MAX_CHARS:
        raise Failed("too_long", f"{len(content)} characters, at most {MAX_CHARS}")
    text = content.translate(_SIGNS)
    odd = next((sign for sign in text if not (" " <= sign <= "~" or sign in "\n\t")), None)
    if odd is not None:
        raise Failed("bad_character", f"{odd!a} is not part of an answer")
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", text.replace("{,}", ",").replace(r"\varnothing", r"\emptyset"))
    text = re.sub(r"(?<=\d)(?:,\\!|\\,)(?=\d{3}(?!\d))", ",", text)
    text = _SPACING.sub(" ", text).replace(r"\$", "").replace("$", "").replace(r"\lbrace", r"\{")
    text = " ".join(text.replace(r"\rbrace", r"\}").split()).rstrip(". ")
    if not text:
        raise Failed("empty", "nothing in the box")
    _check_brackets(text)
    _check_cost(text)
    return text


def _check_brackets(text: str) -> None:
    depth = 0
    for sign in re.sub(r"\\.", "", text):
        depth += (sign in "{([") - (sign in "})]")
        if depth > MAX_DEPTH:
            raise Failed("too_expensive", f"more than {MAX_DEPTH} open brackets")


def _check_cost(text: str) -> None:
    """Refuse numbers that would be astronomically large; the worker's deadline stops other expensive answers."""
    plain = text.replace(",", "").replace(" ", "")
    longest = max((len(digits) for digits in re.findall(r"\d+", plain)), default=0)
    if longest > MAX_DIGITS:
        raise Failed("too_expensive", f"a number of {longest} digits, at most {MAX_DIGITS}")
    if re.search(r"\d[eE][+-]?\d", plain):
        raise Failed("malformed", r"exponent notation; write a \times 10^{k}")
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
    """The exponent after each `^`: a group in braces, one sign, or a number whose braces were forgotten."""
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
    """Whether an exponent without braces is itself raised to a power: 9^9^9."""
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
    # e^{x^2} is allowed; a tower of numbers, or one of more than three levels, is not.
    if not re.search(r"[A-Za-z]\)?\^", exponent) or exponent.count("^") > 2:
        raise Failed("too_expensive", "a tower of exponents")
