r"""Spellings of final answers: from LaTeX, Unicode or plain text to one list of tokens. The one table of normal forms.

Nothing is dropped that could carry meaning: what is typography (spacing, sizes, colours, dollar signs around
mathematics) goes, everything else is a token that the grammar must account for. Cleaning works on tokens, never on
text, so that `\\ ` (a row break and a space) is not `\ ` (a space). Pure; nothing is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["number", "letter", "run", "alnum", "word", "command", "sign", "break"]


@dataclass(frozen=True, slots=True)
class Token:
    """One token. `space`: white space stood before it.

    `number`: digits with a point or exponent; `letter`: one letter; `run`: several letters in a row; `alnum`: letters
    and digits mixed; `word`: the content of \\text{…}; `command`: a LaTeX command without its backslash; `break`: a
    row break of a matrix; `sign`: anything else.
    """

    kind: Kind
    text: str
    space: bool = False


SIGNS = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": r"\div ",
    "π": r"\pi ", "∞": r"\infty ", "°": r"^{\circ}", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ",
    "∓": r"\mp ", "√": r"\sqrt ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "→": r"\to ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "⁰": "^{0}", "¹": "^{1}", "²": "^{2}", "³": "^{3}", "⁴": "^{4}", "⁵": "^{5}", "⁶": "^{6}", "⁷": "^{7}",
    "⁸": "^{8}", "⁹": "^{9}", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⅔": r"\frac{2}{3}", "€": r"\euro ", "£": r"\pounds ", "\u00a0": " ", "’": "'", "‘": "'", "“": '"', "”": '"',
    "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ", "ε": r"\epsilon ", "θ": r"\theta ",
    "λ": r"\lambda ", "μ": r"\mu ", "ρ": r"\rho ", "σ": r"\sigma ", "τ": r"\tau ", "φ": r"\phi ", "ω": r"\omega ",
    "ϕ": r"\phi ", "Δ": r"\Delta ", "Ω": r"\Omega ", "⟨": r"\langle ", "⟩": r"\rangle ",
}  # fmt: skip
"""Signs that have a LaTeX spelling. Digits and letters of other scripts have none and are refused."""

SAME = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge",
    "neq": "ne", "lt": "<", "gt": ">", "varnothing": "emptyset", "infin": "infty", "lbrace": "{", "rbrace": "}",
    "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")",
    "rightarrow": "to", "longrightarrow": "to", "land": "and", "wedge": "and", "lor": "or", "vee": "or",
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "varepsilon": "epsilon", "varphi": "phi", "tbinom": "binom",
    "dbinom": "binom", "degree": "circ", "isin": "in", "lg": "log", "colon": ":", "ldots": "dots", "cdots": "dots",
    "backslash": "setminus", "smallsetminus": "setminus", "ast": "*", "star": "*", "bullet": "cdot",
    "lfloor": "lfloor", "rfloor": "rfloor", "textdollar": "$", "texteuro": "euro", "EUR": "euro",
}  # fmt: skip
"""Commands that mean the same as another command, or as a sign."""

_SPACES = (
    ", ; : ! > quad qquad enspace thinspace displaystyle textstyle scriptstyle limits nolimits left right middle "
    "big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr bf rm it sf tt bfseries rmfamily normalfont "
    "large Large small mathopen mathclose mathrel mathbin protect relax"
)
_SPACING = frozenset((*_SPACES.split(), " "))
_LOOKS = "mathbf boldsymbol bm mathit mathsf mathtt mathnormal boxed fbox underline ensuremath hbox pmb"
_TRANSPARENT = frozenset(_LOOKS.split())
"""Commands that change how their argument looks: the argument stays."""
_TEXTS = "text textbf textit textrm textsf texttt textnormal mbox mathrm operatorname emph"
_TEXT = frozenset(_TEXTS.split())
_FUNCTIONS = "sin cos tan cot sec csc asin acos atan sinh cosh tanh ln log exp sqrt abs floor ceil"
FUNCTIONS = frozenset(_FUNCTIONS.split())
_UNIT_LETTERS = frozenset("msghlL")
"""Letters that are units in upright type: `5\\,\\mathrm{m}`. Others are names: `\\mathrm{e}`, `\\mathrm{A}`."""
_PLAIN = {**{name: name for name in FUNCTIONS}, "arcsin": "asin", "arccos": "acos", "arctan": "atan", "pi": "pi",
          "infinity": "infty", "inf": "infty", "oo": "infty", "or": "or", "and": "and", "union": "cup"}  # fmt: skip
"""Runs of letters that are commands without their backslash, as computer algebra writes them."""

_LEX = re.compile(
    r"(?P<space>[ \t\n~]+)"
    r"|(?P<break>\\\\(?:\[[^\]]*\])?)"
    r"|\\(?P<command>[A-Za-z]+|.)"
    r"|(?P<alnum>(?!\d+[eE]0*[1-9]\d*(?![\d.A-Za-z]))\d+[A-Za-z]+\d[0-9A-Za-z]*|[A-Za-z]+\d[0-9A-Za-z]*)"
    r"|(?P<number>(?:\d+\.\d+|\d+\.(?![\d.])|\.\d+|\d+)(?:[eE][+-]?0*[1-9]\d*(?![\d.A-Za-z]))?)"
    r"|(?P<run>[A-Za-z]+)"
    r"|(?P<sign>\*\*|[^\s])",
    re.DOTALL,
)


class Unreadable(ValueError):
    """Text that is no mathematics by this grammar; the message says where reading stopped."""


def spelled(text: str) -> str:
    """The text with Unicode signs in their LaTeX spelling."""
    return "".join(SIGNS.get(sign, sign) for sign in text)


def tokens(text: str) -> list[Token]:
    """The tokens of an answer without its typography.

    Raises Unreadable where a command's argument does not close.
    """
    return list(_joined(_cleaned(_lexed(spelled(text)))))


def _lexed(text: str) -> Iterator[Token]:
    space, at = False, 0
    while at < len(text):
        found = _LEX.match(text, at)
        if found is None:
            raise Unreadable(f"nothing can be read at {text[at : at + 10]!r}")
        kind, at = found.lastgroup, found.end()
        if kind == "space":
            space = True
            continue
        body = found[kind] if kind else ""
        if kind == "command" and body in _TEXT:
            content, at = _group(text, at)
            yield from _from_text(body, content, space)
        elif kind == "command" and body in ("color", "textcolor", "hspace", "vspace", "phantom"):
            _, at = _group(text, at)
        elif kind == "command" and body in ("mathbb", "mathcal"):
            content, at = _group(text, at)
            yield Token("command", f"{body}{content.strip()}", space)
        elif kind == "run" and len(body) == 1:
            yield Token("letter", body, space)
        elif kind == "run" and body in _PLAIN:
            yield Token("command", _PLAIN[body], space)
        elif kind == "sign":
            yield Token("sign", "^" if body == "**" else body, space)
        else:
            yield Token(kind, body, space)  # type: ignore[arg-type]
        space = False


def _group(text: str, at: int) -> tuple[str, int]:
    """The argument of a command at `at`, in braces or one sign, and where it ends."""
    while text[at : at + 1] == " ":
        at += 1
    if text[at : at + 1] != "{":
        return text[at : at + 1], at + 1
    depth = 0
    for end in range(at, len(text)):
        if text[end] == "{":
            depth += 1
        elif text[end] == "}":
            depth -= 1
            if depth == 0:
                return text[at + 1 : end], end + 1
    raise Unreadable("braces that do not close")


def _from_text(command: str, content: str, space: bool) -> Iterator[Token]:
    bare = content.strip()
    measured = re.fullmatch(r"([-+\d.,/ ]*\d)\s*([A-Za-z].*)", bare)
    if command in ("mathrm", "operatorname") and re.fullmatch(r"[A-Za-z]", bare) and bare not in _UNIT_LETTERS:
        yield Token("letter", bare, space)
    elif measured is not None:  # \text{5 cm}
        yield from _from_text("text", measured[1], space)
        yield Token("word", " ".join(measured[2].split()), True)
    elif bare in _PLAIN or SAME.get(bare) in FUNCTIONS:
        yield Token("command", _PLAIN.get(bare) or SAME[bare], space)
    elif re.fullmatch(r"[-+\d.,/ ]+", bare):
        yield from (replace(token, space=space) if place == 0 else token for place, token in enumerate(_lexed(bare)))
    elif bare:
        yield Token("word", " ".join(bare.split()), space or content[:1] == " ")


def _cleaned(found: Iterator[Token]) -> Iterator[Token]:
    """Typography away, one name per command."""
    space = False
    skip_dot = False
    for token in found:
        if skip_dot and token.text == ".":
            skip_dot = False
            continue
        skip_dot = token.kind == "command" and token.text in ("left", "right")
        if token.kind == "command":
            name = token.text
            if name in (",", "!"):  # kept for `1\,000` and `1,\!000`: joined or dropped below
                yield replace(token, kind="command", text="thin")
                continue
            if name in _SPACING:
                space = True
                continue
            if name in _TRANSPARENT:
                space = space or token.space
                continue
            name = SAME.get(name, name)
            if name in ("$",) or token.text == "$":
                yield Token("command", "dollar", token.space or space)
            elif name in ("{", "}") and token.text in ("{", "}", "lbrace", "rbrace"):
                yield Token("sign", "\\" + name, token.space or space)
            elif name == "|" and token.text == "|":
                yield Token("command", "norm", token.space or space)
            elif name == "%":
                yield Token("sign", "%", token.space or space)
            elif name in ("&", "#", "_"):
                yield Token("sign", "\\" + name, token.space or space)
            elif len(name) == 1 and not name.isalpha():
                yield Token("sign", name, token.space or space)
            else:
                yield Token("command", name, token.space or space)
            space = False
        elif token.kind == "sign" and token.text == "$":
            space = True
        else:
            yield replace(token, space=token.space or space)
            space = False


def _joined(found: Iterator[Token]) -> Iterator[Token]:
    """Thousands of one number made one token: `1{,}000`, `1,\\!000`, `1\\,000`. Plain commas are the grammar's."""
    items = list(found)
    at = 0
    while at < len(items):
        token = items[at]
        if token.kind == "number" and re.fullmatch(r"\d{1,3}", token.text):
            digits, end = token.text, at + 1
            while True:
                ahead = [one.text for one in items[end : end + 4]]
                if ahead[:3] == ["{", ",", "}"] and len(ahead) == 4:
                    step = 3
                elif ahead[:2] == [",", "thin"] and len(ahead) >= 3 and not items[end + 1].space:
                    step = 2
                elif ahead[:1] == ["thin"] and len(ahead) >= 2:
                    step = 1
                else:
                    break
                following = items[end + step]
                if following.kind != "number" or not re.fullmatch(r"\d{3}(\.\d+)?", following.text):
                    break
                digits, end = digits + following.text, end + step + 1
                if "." in following.text:
                    break
            yield replace(token, text=digits)
            at = end
            continue
        if token.text == "thin" and token.kind == "command":
            if at + 1 < len(items):
                items[at + 1] = replace(items[at + 1], space=True)
        elif token.text == "euro" or token.text == "pounds":
            yield token
        else:
            yield token
        at += 1
