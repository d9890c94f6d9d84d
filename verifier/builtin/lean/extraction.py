"""Extraction of the tactic block from a model's answer; header and statement come from the trusted record.

An answer is one of
- the continuation of a prompt that ends in the statement: tactics, perhaps up to a closing fence;
- text with exactly one fenced block, which holds the whole theorem or only its tactics;
- the whole theorem without a fence.
A theorem that the model repeats must be the record's, token by token from `theorem` on. Text before it is ignored and
never run; text after the block is ignored too. Two fenced blocks are refused, because which of them was meant would be
a guess.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from verifier.builtin.failed import Failed
from verifier.builtin.lean.assembly import literal, plain, split
from verifier.builtin.lean.lexer import Token, Unreadable, read
from verifier.builtin.lean.screening import characters

MAX_ANSWER = 256 * 1024
"""Characters of an answer."""

REASONS = frozenset({"second_fence", "statement_changed", "no_proof", "answer_too_long"})

_FENCE = re.compile(r"^[ \t]*```[ \t]*([A-Za-z0-9_+-]*)[ \t]*$", re.MULTILINE)
_HEADS = frozenset({"theorem", "lemma"})


class Record(BaseModel):
    """The statement to be proved; also read under the column names of the DeepSeek-Prover data sets."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    header: str = Field(default="", validation_alias=AliasChoices("header", "src_context"))
    """Imports first, then `open`, `set_option`, `variable` and whatever else the statement needs."""
    statement: str = Field(min_length=1, validation_alias=AliasChoices("statement", "theorem_statement"))
    """`theorem NAME … :=` with or without `by`, and nothing after it."""
    name: str = Field(min_length=1, max_length=256, validation_alias=AliasChoices("name", "theorem_full_name"))
    """The full name of what the statement declares, namespaces included."""

    @field_validator("header", "statement")
    @classmethod
    def _plain(cls, value: str) -> str:
        literal(value := plain(value))
        return value

    @model_validator(mode="after")
    def _ends_in_by(self) -> Self:
        split(self.header)
        try:
            words = [token.text for token in read(self.statement).tokens]
        except Unreadable as unreadable:
            raise ValueError(f"record.statement: {unreadable}") from unreadable
        if words[-1:] == ["sorry"]:
            words.pop()
        if words[-1:] == ["by"]:
            words.pop()
        if words[-2:] != [":", "="] or not _HEADS & set(words):
            raise ValueError("record.statement must be one `theorem NAME … := by`, with nothing after `by`")
        if re.search(r"[^\w.'!?«»₀-₉ᵢ-ᵪ]", self.name):
            raise ValueError(f"record.name {self.name!r:.80} is not a Lean name")
        return self

    @property
    def head(self) -> str:
        """The statement up to and including `:=`, without comments."""
        source = read(self.statement)
        tokens = list(source.tokens)
        while tokens[-1].text in ("sorry", "by"):
            tokens.pop()
        return source.blank[: tokens[-1].end].strip()


def read_record(record: Mapping[str, Any]) -> Record:
    """The validated record. Raises ValueError that names the field, in one line."""
    try:
        return Record.model_validate(dict(record))
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        field, text = ".".join(["record", *map(str, found["loc"])]), found["msg"].removeprefix("Value error, ")
        raise ValueError(text if text.startswith("record.") else f"{field}: {text}") from None


def tactics(answer: str, record: Record) -> str:
    """The text of the answer after `by`, including the line break or blanks that follow `by`.

    Raises Failed: second_fence, statement_changed (a theorem, but not the record's), no_proof (nothing where a proof
    should be), answer_too_long, bad_character, and the lexer's reasons.
    """
    if len(answer) > MAX_ANSWER:
        raise Failed("answer_too_long", f"{len(answer)} characters, at most {MAX_ANSWER}")
    block = _block(answer.replace("\r\n", "\n"))
    if not block.strip():
        raise Failed("no_proof", "the block is empty")
    characters(block)
    tokens = read(block).tokens
    wanted = read(record.head).tokens
    # What stands before `theorem` in the record (`@[simp]`, `open Nat in`) need not be repeated.
    wanted = wanted[next(place for place, token in enumerate(wanted) if token.text in _HEADS) :]
    after = _after(tokens, wanted)
    if after is None:
        if any(token.text in _HEADS and token.line_start for token in tokens):
            raise Failed("statement_changed", "the block's theorem is not the record's")
        return "\n" + block
    if after >= len(tokens) or tokens[after].text != "by":
        raise Failed("no_proof", "the theorem is not followed by `by`: only tactic proofs are taken")
    return block[tokens[after].end :]


def _block(answer: str) -> str:
    fences = list(_FENCE.finditer(answer))
    opened = [fence for fence in fences if fence.group(1)]
    if not fences:
        return answer
    if opened or len(fences) == 2:
        # A fence with a language opens a block; one without closes it, or opens one if none is open.
        first = opened[0] if opened else fences[0]
        before = [fence for fence in fences if fence.start() < first.start()]
        rest = [fence for fence in fences if fence.start() > first.start()]
        if before or len(opened) > 1 or len(rest) > 1:
            raise Failed("second_fence", f"{len(fences)} fences")
        return answer[first.end() : rest[0].start() if rest else len(answer)].removeprefix("\n")
    if len(fences) > 1:
        raise Failed("second_fence", f"{len(fences)} fences")
    return answer[: fences[0].start()]


def _after(tokens: tuple[Token, ...], wanted: tuple[Token, ...]) -> int | None:
    """The index after the first occurrence of the token sequence `wanted`; None if it does not occur."""
    texts, sought = [token.text for token in tokens], [token.text for token in wanted]
    first = sought[0]
    for place in range(len(texts) - len(sought) + 1):
        if texts[place] == first and texts[place : place + len(sought)] == sought:
            return place + len(sought)
    return None
