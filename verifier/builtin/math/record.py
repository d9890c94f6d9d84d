r"""A record of the verifier `math`: accepted answers and their kind, declared or inferred once from the text.

    {"answer": latex or text, or a list of accepted ones, "kind": optional, "question": optional text}

`kind` says what the answer is: number, expression, set, tuple, interval, relation, matrix, choice, text or time. Where
it is missing it is inferred by the text of the record alone: a word is text, not a product of its letters; `7:15` is a
time, not a fraction; a list without brackets is a set. What cannot be read as mathematics is text and compared as text.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from verifier.builtin.failed import Failed
from verifier.builtin.math.box import MAX_CHARS, MAX_EXPONENT, admitted, check_cost, last_boxed
from verifier.builtin.math.grammar import read
from verifier.builtin.math.spelling import Token, Unreadable, spelled, tokens
from verifier.builtin.math.values import (
    Based,
    Cases,
    Interval,
    Matrix,
    Ratio,
    Region,
    Relation,
    Scalar,
    Set,
    Shape,
    Tuple,
    as_region,
)

Kind = Literal["number", "expression", "set", "tuple", "interval", "relation", "matrix", "choice", "text", "time"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MAX_ALTERNATIVES = 16
MAX_TEXT = 10_000
"""Characters of a record's answer that is text."""

_TIME = re.compile(r"(\d{1,2}):([0-5]\d)(?::([0-5]\d)(\.\d+)?)?\s*([ap])?\.?(m)?\.?", re.IGNORECASE)
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_PROSE = frozenset(".,;:'\"?!&-#→")
_READ_AS: dict[type, Kind] = {
    Based: "number", Set: "set", Tuple: "tuple", Interval: "interval", Region: "interval", Relation: "relation",
    Matrix: "matrix", Cases: "matrix", Ratio: "tuple",
}  # fmt: skip


@dataclass(frozen=True)
class Accepted:
    """One accepted answer. `shape` is None for choice, text and time, which are compared by `key`."""

    text: str
    kind: Kind
    shape: Shape | None
    key: str
    tokens: tuple[Token, ...] = ()

    @property
    def longest(self) -> int:
        """Characters that an answer may have."""
        return max(MAX_CHARS, 2 * len(self.text))


PHRASES = {
    "all real numbers": r"\mathbb{R}", "all reals": r"\mathbb{R}", "no solution": r"\emptyset",
    "no solutions": r"\emptyset", "empty set": r"\emptyset", "the empty set": r"\emptyset",
}  # fmt: skip
"""Words that have a spelling in mathematics."""


def accepted(record: Mapping[str, Any]) -> tuple[list[Accepted], str]:
    """The accepted answers, and the question. Raises ValueError, naming the field and what to declare."""
    answers, question, kind = record.get("answer"), record.get("question", ""), record.get("kind")
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list | tuple) or not 1 <= len(answers) <= MAX_ALTERNATIVES:
        raise ValueError(f"record.answer must be LaTeX text or a list of 1 to {MAX_ALTERNATIVES} of them")
    if not all(isinstance(answer, str) for answer in answers) or not isinstance(question, str):
        raise ValueError("record.answer and record.question must be text")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"record.kind = {str(kind)[:40]!r}: must be one of {', '.join(KINDS)}")
    return [_accepted(answer, kind) for answer in answers], question


@lru_cache(maxsize=4096)  # the completions of a group share their record
def _accepted(answer: str, kind: Kind | None) -> Accepted:
    try:
        content = last_boxed(answer, MAX_TEXT) if "\\boxed" in answer else answer
        text = admitted(content, MAX_TEXT, also=content if _letters_only(content) or kind == "text" else "→❌✅")
    except Failed as refused:
        raise ValueError(f"record.answer {answer[:100]!r}: {refused}; declare kind: text for words") from None
    if kind in ("choice", "text", "time"):
        return _declared(text, kind)
    text = PHRASES.get(text_key(text), text)
    if kind is None:
        if (time := _time(text)) is not None:
            return Accepted(text, "time", None, time)
        if is_prose(text):
            return _declared(text, "choice" if re.fullmatch(r"[A-Z]", text_key(text)) else "text")
    try:
        found = tokens(text)
        shape = read(found)
        check_cost(text)
        check_towers(shape)
    except Unreadable as unreadable:
        if kind is None and _balanced(text):
            return _declared(text, "text")
        raise ValueError(
            f"record.answer {answer[:100]!r} cannot be read as {kind or 'mathematics'}: {unreadable}; correct it, or "
            f"declare kind: text"
        ) from None
    except Failed as refused:
        raise ValueError(f"record.answer {answer[:100]!r}: {refused}") from None
    if len(text) > MAX_CHARS:
        return _declared(text, "text")
    if kind is None:
        return Accepted(text, kind_of(shape), shape, "", tuple(found))
    return Accepted(text, kind, _as(kind, shape, answer), "", tuple(found))


def _declared(text: str, kind: Kind) -> Accepted:
    if text.count("{") != text.count("}"):
        raise ValueError(f"record.answer {text[:100]!r} has braces that do not close, so no box can hold it")
    if kind == "time":
        time = _time(text)
        if time is None:
            raise ValueError(f"record.answer {text[:100]!r} is no time; write 7:15, 07:15:30 or 7:15 PM")
        return Accepted(text, kind, None, time)
    key = text_key(text)
    found: tuple[Token, ...] = ()
    if "\\" in text and not is_prose(text):
        with contextlib.suppress(Unreadable):
            found = tuple(tokens(text))  # mathematics that the grammar does not know: compared token by token
    if kind == "choice" and not re.fullmatch(r"[A-Za-z0-9]{1,3}", key):
        raise ValueError(f"record.answer {text[:100]!r} is no choice; write its letter, or declare kind: text")
    return Accepted(text, kind, None, key, found)


def kind_of(shape: Shape) -> Kind:
    """The kind that a value was inferred to be."""
    if isinstance(shape, Scalar):
        return "number" if shape.number is not None else "expression"
    return _READ_AS[type(shape)]


def _as(kind: Kind, shape: Shape, answer: str) -> Shape:
    """The value as the declared kind. Raises ValueError where it is none."""
    if kind == "interval" and (region := as_region(shape)) is not None:
        return region
    if kind == "set" and isinstance(shape, Scalar):
        return Set((shape,))
    if kind == "expression" and isinstance(shape, Scalar):
        return Scalar(shape.tree, shape.unit, None, shape.decimal, True)
    if kind == "tuple" and isinstance(shape, Tuple):
        return Tuple(shape.brackets, shape.members, point=True)
    if kind_of(shape) != kind:
        raise ValueError(f"record.answer {answer[:100]!r} reads as {kind_of(shape)}, but record.kind is {kind}")
    return shape


def _balanced(text: str) -> bool:
    depth = 0
    for sign in text:
        depth += (sign in "([{") - (sign in ")]}")
        if depth < 0:
            return False
    return depth == 0


def _letters_only(text: str) -> bool:
    return not re.search(r"\d", text) and bool(re.search(r"[^\W\d_]{2}|[^\x00-\x7f]", text))


def _time(text: str) -> str | None:
    """`7:15 PM` as "7:15:0 p"; None for what is no time."""
    found = _TIME.fullmatch(_plain(text))
    if found is None or bool(found[5]) != bool(found[6]):
        return None
    fraction = (found[4] or "").rstrip("0").rstrip(".")
    return f"{int(found[1])}:{int(found[2])}:{int(found[3] or 0)}{fraction} {(found[5] or '').lower()}".strip()


def time_key(text: str) -> str | None:
    """The key of a time, None for what is no time."""
    return _time(text)


def is_prose(text: str) -> bool:
    r"""Whether an answer is words: letters and punctuation with at least one word in them, a choice, or a list of
    capital letters. `x`, `xy` and `\pi` are mathematics."""
    bare = _plain(text)
    if re.fullmatch(r"\(?[A-Z]\)?", bare):
        return True
    if re.search(r"\d", bare) or re.search(r"\\[A-Za-z]", bare):
        return False
    if re.fullmatch(r"[A-Z](?:\s*[,>]\s*[A-Z])+", bare) or re.fullmatch(r"[A-Za-z](?: [A-Za-z])+", bare):
        return True
    letters = "".join(sign for sign in bare if not sign.isspace() and sign not in _PROSE)
    if not letters or not all(sign.isalpha() for sign in letters):
        return False
    longest = max((len(run) for run in re.findall(r"[^\W\d_]+", bare)), default=0)
    if "\\text" in text:
        return True
    if longest == 1:
        return False
    if re.fullmatch(r"[xyz]{2,3}", bare):
        return False
    return not re.fullmatch(r"(?:pi|e|i|oo|inf)", bare) and (longest >= 4 or not re.search(r"-", bare))


def _plain(text: str) -> str:
    text = _WRAPPER.sub(lambda found: found[1], text.replace("$", ""))
    return " ".join(re.sub(r"\\[,;:! ]|~|\\q?quad\b", " ", text).split())


def text_key(text: str) -> str:
    """What two texts that mean the same share: no wrappers, one space, no case unless it is one letter."""
    plain = spelled(_plain(text)).replace(r"\rightarrow", r"\to")
    plain = re.sub(r"\s*,\s*", ", ", " ".join(plain.split())).rstrip(". ")
    plain = re.sub(r"^\(?([A-Za-z0-9])[.)]$", r"\1", plain)
    return plain if len(plain) == 1 else plain.casefold()


def check_towers(shape: Any) -> None:
    """Raises Failed for powers of powers whose exponents multiply to more than MAX_EXPONENT."""
    if isinstance(shape, Scalar):
        _degree(shape.tree)
    elif hasattr(shape, "__dataclass_fields__"):
        for name in shape.__dataclass_fields__:
            _check_parts(getattr(shape, name))


def _check_parts(value: Any) -> None:
    if isinstance(value, tuple):
        for part in value:
            _check_parts(part)
    elif hasattr(value, "__dataclass_fields__"):
        check_towers(value)
    elif isinstance(value, list):
        _degree(value)


def _degree(tree: Any) -> int:
    below = max((_degree(part) for part in tree[1:] if isinstance(part, list)), default=1)
    if tree[0] == "^" and tree[2][0] == "q" and "/" not in tree[2][1]:
        below *= max(1, abs(int(tree[2][1])))
        if below > MAX_EXPONENT:
            raise Failed("too_expensive", f"powers of powers over {MAX_EXPONENT}")
    return below
