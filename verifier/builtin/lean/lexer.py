"""A lexer for Lean 4: comments, strings, characters, identifiers with «», numbers, symbols.

It finds words and their boundaries only; screening.py decides which of them matter, and Lean alone what they mean.
Where Lean's own longest-match tokens could differ from this reading (a comment attached to an operator), the text is
refused. The only rewriting is that comments become blanks.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Literal

from verifier.builtin.failed import Failed

Kind = Literal["identifier", "number", "string", "character", "symbol"]

MAX_NESTING = 32
"""Block comments, or terms inside interpolated strings, open at once."""

_QUOTES = {"«": "»"}
_OPENERS = frozenset(" \t\n()[]{}⟨⟩,;·.")
"""Characters after which a comment can begin without being mistaken for the tail of an operator."""


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
    """The tokens of a text; `blank` is the text with every comment replaced by as many blanks (line breaks stay)."""

    tokens: tuple[Token, ...]
    blank: str


def read(text: str) -> Source:
    """Cut `text` into tokens.

    Raises Unreadable: unterminated_comment, unterminated_string, odd_comment (attached to an operator), odd_identifier
    (an unclosed «), too_deep.
    """
    tokens: list[Token] = []
    blank = list(text)
    at, fresh = 0, True
    while at < len(text):
        sign = text[at]
        if sign.isspace():
            fresh = fresh or sign == "\n"
            at += 1
            continue
        if text.startswith(("--", "/-"), at):
            if at and text[at - 1] not in _OPENERS and not _continues(text[at - 1]):
                raise Unreadable("odd_comment", f"{text[max(0, at - 3) : at + 3]!r}: a comment attached to an operator")
            end = comment_end(text, at)
            for place in range(at, end):
                if text[place] != "\n":
                    blank[place] = " "
            fresh = fresh or "\n" in text[at:end]
            at = end
            continue
        token = _token(text, at, fresh)
        tokens.append(token)
        at, fresh = token.end, False
    return Source(tuple(tokens), "".join(blank))


def _token(text: str, at: int, fresh: bool) -> Token:
    sign = text[at]
    if sign == '"':
        return _string(text, at, at + 1, fresh)
    if sign == "r" and (hashes := _raw(text, at)) is not None:
        return _raw_string(text, at, hashes, fresh)
    if sign == "'":
        end = _character(text, at)
        if end is not None:
            return Token("character", text[at:end], at, end, fresh)
        return Token("symbol", sign, at, at + 1, fresh)
    if sign.isdecimal():
        end = at + 1
        while end < len(text) and (text[end].isalnum() or text[end] == "_"):
            end += 1
        return Token("number", text[at:end], at, end, fresh)
    if _begins(sign) or sign in _QUOTES:
        return _identifier(text, at, fresh)
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
            while end < len(text) and _continues(text[end]):
                end += 1
            parts.append(text[start:end])
        if end + 1 < len(text) and text[end] == "." and (_begins(text[end + 1]) or text[end + 1] == "«"):
            end += 1
            continue
        return Token("identifier", text[at:end], at, end, fresh, tuple(parts))


def _string(text: str, at: int, inside: int, fresh: bool) -> Token:
    """A string literal; its words are collected too, because in s!"{…}" they are code."""
    end = inside
    while end < len(text):
        if text[end] == "\\":
            end += 2
        elif text[end] == '"':
            return Token("string", text[at : end + 1], at, end + 1, fresh, _words(text[inside:end]))
        else:
            end += 1
    raise Unreadable("unterminated_string", repr(text[at : at + 20]))


def _raw_string(text: str, at: int, hashes: int, fresh: bool) -> Token:
    inside = at + 1 + hashes + 1
    close = text.find('"' + "#" * hashes, inside)
    if close < 0:
        raise Unreadable("unterminated_string", repr(text[at : at + 20]))
    end = close + 1 + hashes
    return Token("string", text[at:end], at, end, fresh, _words(text[inside:close]))


def _raw(text: str, at: int) -> int | None:
    """The number of # that open a raw string at `at`; None if there is no raw string."""
    if at and _continues(text[at - 1]):
        return None
    end = at + 1
    while end < len(text) and text[end] == "#":
        end += 1
    return end - at - 1 if end < len(text) and text[end] == '"' else None


def _character(text: str, at: int) -> int | None:
    if text.startswith("'\\", at):
        close = text.find("'", at + 3)
        return close + 1 if 0 <= close <= at + 8 else None
    return at + 3 if at + 2 < len(text) and text[at + 2] == "'" and text[at + 1] not in "'\n" else None


def _words(text: str) -> tuple[str, ...]:
    words, word = [], ""
    for sign in text + " ":
        if _continues(sign):
            word += sign
        elif word:
            words.append(word)
            word = ""
    return tuple(words)


def comment_end(text: str, at: int) -> int:
    """The end of the comment that begins at `at`."""
    if text.startswith("--", at):
        close = text.find("\n", at)
        return len(text) if close < 0 else close
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


def _begins(sign: str) -> bool:
    """Whether an identifier can begin with `sign`; wider than Lean's own rule, so that no identifier is missed."""
    return sign == "_" or unicodedata.category(sign)[0] == "L"


def _continues(sign: str) -> bool:
    return _begins(sign) or sign in "'!?" or sign.isalnum() or unicodedata.category(sign) in ("Mn", "Mc", "No", "Lm")
