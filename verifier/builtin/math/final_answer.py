r"""Final answers as text: the last `\boxed{…}`, what may stand in it, and the numbers that are compared exactly.

Everything here happens before any computer algebra sees the answer, because algebra is generous (it takes 3 = 5 for 5
and a sum for its value) and can be made to compute for hours. So an answer is cut out, cleaned and gated by its text:
length, characters, commands, size of literals, exponents and factorials. Numbers become exact fractions and never reach
the algebra at all. Pure functions; nothing is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

MAX_CHARS = 400
"""Characters of one final answer."""
MAX_DIGITS = 50
"""Digits of one number; longer literals make arithmetic, not mathematics, expensive."""
MAX_EXPONENT = 10_000
MAX_FACTORIAL = 5_000
MAX_DEPTH = 30
"""Brackets open at once."""

_BOXED = re.compile(r"\\boxed(?![A-Za-z])\s*")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_SIGNS = str.maketrans({"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "π": r"\pi ",
                        "∞": r"\infty ", "°": r"^{\circ}", "≤": r"\le ", "≥": r"\ge ", "\u00a0": " "})  # fmt: skip
_SPACING = re.compile(r"\\(?:[,;:! ]|quad\b|qquad\b|displaystyle\b|left\b|right\b|bigl?\b|bigr\b|Bigl?\b|Bigr\b)|~")
_WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox|operatorname)\s*\{([^{}]*)\}")

_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi varphi chi psi omega"
)
COMMANDS = frozenset(
    f"{_GREEK} {_GREEK.title()} frac sqrt cdot times div pm mp infty text textbf textit textrm mathrm mbox circ "
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp cup cap setminus emptyset varnothing in "
    "le leq ge geq lt gt begin end overline vec hat bar mathbf mathbb lvert rvert vert mid prime ldots dots".split()
)
"""LaTeX commands an answer may use; others only where the record's own answer uses them. Missing on purpose: what
leaves the work undone (sum, prod, int, lim, binom, gcd, max, mod …) and what claims no value (approx, sim, ne)."""
_UNITS = (
    "mm cm m km in inch inches ft foot feet yd yard yards mile miles mph kmh second seconds s minute minutes min hour "
    "hours h day days week weeks month months year years degree degrees dollar dollars cent cents g kg gram grams lb "
    "pound pounds oz ounce ounces liter liters litre litres ml unit units square cubic sq cu meter meters metre metres "
    "centimeter centimeters kilometer kilometers per"
)
UNITS = frozenset(_UNITS.split())
"""Words that may follow a number whose record has no unit."""


class Refused(ValueError):
    """Not an acceptable final answer; `reason` is its code."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


def last_boxed(text: str) -> str:
    r"""The content of the last `\boxed{…}` in `text`; only the last one counts, whatever came before.

    Raises Refused: no_answer, malformed (no braces, or they do not close), too_long.
    """
    boxes = [found.end() for found in _BOXED.finditer(text)]
    if not boxes:
        raise Refused("no_answer", r"no \boxed{…}")
    answer, _ = _content(text, boxes[-1])
    for start in boxes[:-1]:
        # 6, [5], 7 is three answers; a box around nothing but a box is one.
        if start > boxes[-1] - 2 * MAX_CHARS and text[start : start + 1] == "{":
            outer, end = _content(text, start)
            if end > boxes[-1] and re.sub(r"\\boxed|[{}\s]", "", outer) != re.sub(r"[{}\s]", "", answer):
                raise Refused("malformed", "a box within a box")
    return answer


def _content(text: str, start: int) -> tuple[str, int]:
    """What the braces that open at `start` hold, and where they close. Raises Refused: malformed, too_long."""
    if text[start : start + 1] != "{":
        raise Refused("malformed", r"\boxed without braces")
    depth, at = 0, start
    while at < len(text):
        if at - start > 2 * MAX_CHARS:
            raise Refused("too_long", f"more than {2 * MAX_CHARS} characters in the last box")
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
    raise Refused("malformed", "a box that does not close")


def clean(content: str) -> str:
    """The answer with common signs spelled in LaTeX and typography removed; every gate has been passed.

    Raises Refused: empty, too_long, bad_character, too_expensive, malformed.
    """
    if len(content) > MAX_CHARS:
        raise Refused("too_long", f"{len(content)} characters, at most {MAX_CHARS}")
    text = content.translate(_SIGNS)
    odd = next((sign for sign in text if not (" " <= sign <= "~" or sign in "\n\t")), None)
    if odd is not None:
        raise Refused("bad_character", f"{odd!a} is not part of an answer")
    text = re.sub(r"\\[dt]frac(?![A-Za-z])", r"\\frac", text.replace("{,}", ",").replace(r"\varnothing", r"\emptyset"))
    text = re.sub(r"(?<=\d)(?:,\\!|\\,)(?=\d{3}(?!\d))", ",", text)
    text = _SPACING.sub(" ", text).replace(r"\$", "").replace("$", "").replace(r"\lbrace", r"\{")
    text = " ".join(text.replace(r"\rbrace", r"\}").split()).rstrip(". ")
    if not text:
        raise Refused("empty", "nothing in the box")
    _check_brackets(text)
    _check_cost(text)
    return text


def commands(text: str) -> frozenset[str]:
    """Names of the LaTeX commands in `text`."""
    return frozenset(_COMMAND.findall(text))


def number(text: str) -> tuple[Fraction, str] | None:
    r"""(value, unit) if `text` is one written-out number, None if it is anything else.

    A number is: an integer (`1,000` too), a decimal, `a/b`, `\frac{a}{b}`, a mixed number, or `a \times 10^{k}`; a unit
    is `%`, degrees, or words in `\text{…}`. `2^{10}`, `6!`, `2+3` and `\sqrt{4}` are work left undone, not numbers.
    """
    text, unit = _unit(text)
    while (inner := _unwrapped(text)) is not None:
        text = inner
    sign = -1 if text.startswith("-") else 1
    body = text[1:].strip() if text[:1] in "+-" else text
    value = _unsigned(body)
    return None if value is None else (sign * value, unit)


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


def symbols(text: str) -> frozenset[str]:
    """Letters and commands outside words: what an algebra system takes for symbols, with their case."""
    bare = _WORDS.sub(" ", text)
    return frozenset(_COMMAND.sub(" ", bare)) & frozenset(_LETTERS) | commands(bare)


_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def _squeezed(text: str) -> str:
    kept = re.sub(r"(?<=\d)\s+(?=\d)", "_", text)  # 1 2 is not 12
    return re.sub(r"\{([A-Za-z0-9])\}", r"\1", re.sub(r"\s+", "", kept))


def _check_brackets(text: str) -> None:
    depth = 0
    for sign in re.sub(r"\\.", "", text):
        depth += (sign in "{([") - (sign in "})]")
        if depth > MAX_DEPTH:
            raise Refused("too_expensive", f"more than {MAX_DEPTH} open brackets")


def _check_cost(text: str) -> None:
    """Refuse what would be astronomically large; the deadline of the worker catches what passes here."""
    plain = text.replace(",", "").replace(" ", "")
    longest = max((len(digits) for digits in re.findall(r"\d+", plain)), default=0)
    if longest > MAX_DIGITS:
        raise Refused("too_expensive", f"a number of {longest} digits, at most {MAX_DIGITS}")
    if re.search(r"\d[eE][+-]?\d", plain):
        raise Refused("malformed", r"exponent notation; write a \times 10^{k}")
    plain = plain.replace("**", "^")
    for exponent in _exponents(plain):
        _check_exponent(exponent)
    for found in re.finditer(r"(\d+|[)}\]])!", plain):
        if not found[1].isdigit() and not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", plain[: found.start()])):
            raise Refused("too_expensive", "the factorial of a computed number")
        if found[1].isdigit() and int(found[1]) > MAX_FACTORIAL:
            raise Refused("too_expensive", f"{found[1]}!, at most {MAX_FACTORIAL}!")
    if "!!" in plain:
        raise Refused("too_expensive", "a factorial of a factorial")


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
        raise Refused("too_expensive", f"an exponent over {MAX_EXPONENT}")
    if "!" in exponent and not re.search(r"[a-z]!", exponent):
        raise Refused("too_expensive", "a factorial in an exponent")
    if "^" not in exponent:
        return
    small = re.fullmatch(r"(\d+)\^\{?(\d+)\}?", exponent)
    if small is not None and int(small[2]) * len(small[1]) <= 2 * len(str(MAX_EXPONENT)):
        if int(small[1]) ** int(small[2]) <= MAX_EXPONENT:
            return
        raise Refused("too_expensive", f"an exponent over {MAX_EXPONENT}")
    # e^{x^2} is an answer; a tower of numbers, or of three storeys, is an attack.
    if not re.search(r"[A-Za-z]\)?\^", exponent) or exponent.count("^") > 2:
        raise Refused("too_expensive", "a tower of exponents")


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


def known_unit(unit: str) -> bool:
    """Whether every word of a unit is a usual one."""
    return unit not in ("%", "percent") and all(word.rstrip("23") in UNITS for word in re.split(r"[ /]+", unit))


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
    """Whether the bracket that opens `text` is closed by its last sign; any kind will do, [1,2) is one thing."""
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
