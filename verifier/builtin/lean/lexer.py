"""A lexer for Lean 4: comments, strings, characters, identifiers with «», numbers, symbols.

It splits a text into words as Lean's own tokenizer does (`Lean.Parser.Basic`, `Lean.Parser.Types`), or refuses it. What
Lean reads depends on the notations in scope; where two readings are possible, the text is refused: a number glued to a
word, quotes that are not plainly one string or character, a comment attached to an operator, letters that only some
versions take for letters. Symbols come one character at a time, since only the words matter to screening.py. The only
rewriting is that comments and tabs become blanks.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from verifier.builtin.failed import Failed

Kind = Literal["identifier", "number", "string", "character", "symbol"]

MAX_NESTING = 32
"""Block comments open at once."""

_LETTER = (
    "A-Za-z_\u0391-\u039f\u03a1\u03a2\u03a4-\u03a9\u03b1-\u03ba\u03bc-\u03c9\u03ca-\u03fb\u1f00-\u1ffe\u2100-\u214f"
    "\U0001d49c-\U0001d59f"
)
"""What begins an identifier in every version: isIdFirst of Init.Meta."""
_FIRST = re.compile(f"[{_LETTER}]")
_REST = re.compile(f"[{_LETTER}0-9'!?\u2080-\u2089\u2090-\u209c\u1d62-\u1d6a]*")
_SOME_VERSIONS = re.compile("[\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017f\u2c7c]")
"""Letters in identifiers of newer versions only."""
_NUMBER = re.compile(
    r"0[xX][0-9a-fA-F_]*|0[bB][01_]*|0[oO][0-7_]*|[0-9][0-9_]*(?:\.[0-9][0-9_]*)?(?:[eE][+-]?[0-9][0-9_]*)?"
)
_INDEX = re.compile(r"[0-9]+")
_ESCAPE = re.compile(r"\\(?:[\\\"'rnt]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})")
_GAP = re.compile(r"\\ *\n *(?![ \n])")
_CHARACTER = re.compile(rf"'(?:{_ESCAPE.pattern}|[^\\'\n])'")
_RAW = re.compile(r'r(#*)"')
_OPERATORS = re.compile(r"(?:^|[^!-/:-@\[-`{-~])(?:<;>|:=|=>|←|,|;|\(|\[|\{|\)|\]|\}|⟨|⟩|·|\.|=)$|[^\x00-\x7f]$")
"""The end of a text after which a comment can begin: no operator goes on with a comment's first sign there."""
_INTERPOLATED = re.compile(r"""[^{}"'«\\]*\}""")


class Unreadable(Failed):
    """The text cannot be cut into tokens without guessing; `reason` is one of screening.REASONS."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token. `text` is as written; `start` and `end` are offsets into the source; `line_start` is true if only
    blanks precede it on its line. `parts` of an identifier are its components without «», of a string its words."""

    kind: Kind
    text: str
    start: int
    end: int
    line_start: bool
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """The tokens of a text; `blank` is the text with comments and tabs as blanks (line breaks stay)."""

    tokens: tuple[Token, ...]
    blank: str


def read(text: str) -> Source:
    """Cut `text` into tokens.

    Raises Unreadable: unterminated_comment, unterminated_string, odd_comment (attached to an operator), odd_identifier,
    odd_number (glued to a word), odd_quote, odd_string, bad_character (a blank or letter that Lean does not know),
    too_deep.
    """
    tokens: list[Token] = []
    blank = list(text)
    at, fresh = 0, True
    while at < len(text):
        sign = text[at]
        if sign in " \n\t":
            if sign == "\t":
                blank[at] = " "
            fresh = fresh or sign == "\n"
            at += 1
            continue
        if text.startswith(("--", "/-"), at):
            if at and not _comment_may_begin(text, at):
                raise Unreadable("odd_comment", f"{text[max(0, at - 3) : at + 3]!r}: a comment attached to an operator")
            end = comment_end(text, at)
            for place in range(at, end):
                if text[place] != "\n":
                    blank[place] = " "
            fresh = fresh or "\n" in text[at:end]
            at = end
            continue
        token = _token(text, at, fresh, tokens[-1] if tokens else None)
        tokens.append(token)
        at, fresh = token.end, False
    return Source(tuple(tokens), "".join(blank))


def _token(text: str, at: int, fresh: bool, before: Token | None) -> Token:
    sign = text[at]
    if sign == '"':
        return _string(text, at, fresh)
    if found := _RAW.match(text, at):
        return _raw_string(text, at, found, fresh)
    if sign == "'":
        operator = before is not None and before.end == at and before.kind == "symbol" and before.text not in "([{⟨,;"
        return _quote(text, at, fresh, operator)
    if sign in "0123456789":
        glued = before is not None and before.end == at
        return _number(text, at, fresh, index=glued and before is not None and before.text == ".")
    if _FIRST.match(sign) or sign == "«":
        return _identifier(text, at, fresh)
    if sign.isspace() or _SOME_VERSIONS.match(sign) or _looks_plain(sign):
        raise Unreadable("bad_character", f"U+{ord(sign):04X} at {at} is no sign of Lean's")
    return Token("symbol", sign, at, at + 1, fresh)


def _identifier(text: str, at: int, fresh: bool) -> Token:
    parts: list[str] = []
    end = at
    while True:
        if text[end] == "«":
            close = text.find("»", end + 1)
            if close < 0 or "\n" in text[end:close]:
                raise Unreadable("odd_identifier", "« without » on its line")
            parts.append(text[end + 1 : close])
            end = close + 1
        else:
            start = end
            end = _rest(text, end)
            parts.append(text[start:end])
        if end + 1 < len(text) and text[end] == "." and (_FIRST.match(text[end + 1]) or text[end + 1] == "«"):
            end += 1
            continue
        if end < len(text) and (text[end] == "«" or _wordlike(text[end])):
            raise Unreadable("odd_identifier", f"{text[at : end + 1]!r:.60}: two words without a blank")
        return Token("identifier", text[at:end], at, end, fresh, tuple(parts))


def _number(text: str, at: int, fresh: bool, *, index: bool) -> Token:
    """A numeral; with `index` the digits of a field (`h.1.2`)."""
    found = (_INDEX if index else _NUMBER).match(text, at)
    assert found is not None
    end = found.end()
    following = text[end : end + 1]
    # No word begins with ! or ?, as in 5!
    glued = (_wordlike(following) and following not in "!?") or following in ("«", "'", '"')
    named = not index and following == "."  # `1.` is a numeral for Lean, whatever comes after it
    if glued or named or found[0].endswith("_") or found[0].lower() in ("0x", "0b", "0o"):
        raise Unreadable("odd_number", f"{text[at : end + 8]!r}: a number and a word without a blank")
    return Token("number", found[0], at, end, fresh)


def _quote(text: str, at: int, fresh: bool, glued: bool) -> Token:
    """A character, the operator '' between blanks, or the last sign of an operator such as ∑' and ⁻¹'.

    `glued`: an operator ends where the quote stands. Lean takes the longest operator in scope, and otherwise a
    character: text that could be both is refused.
    """
    if text.startswith("''", at):
        if not glued and text[at + 2 : at + 3] in ("", " ", "\n", "\t", "("):
            return Token("symbol", "''", at, at + 2, fresh)
        raise Unreadable("odd_quote", f"{text[at : at + 8]!r}: put blanks around ''")
    found = _CHARACTER.match(text, at)
    if glued and found is None:
        return Token("symbol", "'", at, at + 1, fresh)
    if glued or found is None or text[found.end() : found.end() + 1] in ("'", '"'):
        raise Unreadable("odd_quote", f"{text[at : at + 8]!r}: put blanks around a character")
    return Token("character", found[0], at, found.end(), fresh)


def _string(text: str, at: int, fresh: bool) -> Token:
    """A string literal; its words are collected too, because in s!"{…}" they are code."""
    end = at + 1
    while end < len(text):
        if text[end] == "\\":
            found = _ESCAPE.match(text, end) or _GAP.match(text, end)
            # \{ is an escape of interpolated strings alone
            if found is None:
                raise Unreadable("odd_string", f"{text[end : end + 4]!r} is not an escape of a string")
            end = found.end()
        elif text[end] == '"':
            inside = text[at + 1 : end]
            _interpolation(inside)
            return Token("string", text[at : end + 1], at, end + 1, fresh, _words(inside))
        else:
            end += 1
    raise Unreadable("unterminated_string", repr(text[at : at + 20]))


def _interpolation(inside: str) -> None:
    """Refuse a string that ends elsewhere if it is read as an interpolated one. Raises Unreadable."""
    at = 0
    while (at := inside.find("{", at)) >= 0:
        found = _INTERPOLATED.match(inside, at + 1)
        if found is None or "--" in found[0] or "/-" in found[0]:
            raise Unreadable(
                "odd_string", f"{inside[at : at + 20]!r}: give the value a name and put only that inside {{}}"
            )
        at = found.end()


def _raw_string(text: str, at: int, opened: re.Match[str], fresh: bool) -> Token:
    close = text.find('"' + opened[1], opened.end())
    if close < 0:
        raise Unreadable("unterminated_string", repr(text[at : at + 20]))
    end = close + 1 + len(opened[1])
    inside = text[opened.end() : close]
    _interpolation(inside)
    return Token("string", text[at:end], at, end, fresh, _words(inside))


def _looks_plain(sign: str) -> bool:
    """Whether `sign` is another form of an ASCII letter (full width, bold …) that Lean does not take for a letter."""
    return unicodedata.category(sign) in ("Lu", "Ll") and unicodedata.normalize("NFKC", sign).isascii()


def _words(text: str) -> tuple[str, ...]:
    words, word = [], ""
    for sign in text + " ":
        if _wordlike(sign):
            word += sign
        elif word:
            words.append(word)
            word = ""
    return tuple(words)


def _comment_may_begin(text: str, at: int) -> bool:
    before = text[at - 1]
    return before in " \n\t" or _wordlike(before) or before in "'\"»" or bool(_OPERATORS.search(text[:at][-8:]))


def comment_end(text: str, at: int) -> int:
    """The end of the comment that begins at `at`."""
    if text.startswith("--", at):
        close = text.find("\n", at)
        return len(text) if close < 0 else close
    if text.startswith("/--/", at):
        raise Unreadable("odd_comment", "'/--/': a whole comment for some versions, the beginning of one for others")
    depth, end = 1, at + 2
    while depth:
        opens, closes = text.find("/-", end), text.find("-/", end)
        if closes < 0:
            raise Unreadable("unterminated_comment", repr(text[at : at + 20]))
        if 0 <= opens < closes:
            # `/-/` opens a comment and does not close one, as in Lean.
            depth, end = depth + 1, opens + 2
            if depth > MAX_NESTING:
                raise Unreadable("too_deep", f"more than {MAX_NESTING} nested comments")
        else:
            depth, end = depth - 1, closes + 2
    return end


def _rest(text: str, at: int) -> int:
    """The end of an identifier's component that begins at `at`."""
    found = _REST.match(text, at)
    assert found is not None
    return found.end()


def _wordlike(sign: str) -> bool:
    """Whether some version of Lean lets `sign` stand inside an identifier; false for ""."""
    return bool(sign) and (_REST.fullmatch(sign) is not None or _SOME_VERSIONS.match(sign) is not None)
