"""The lexer against Lean's own rules for tokens, written down a second time: it splits alike, or refuses."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.builtin.failed import Failed
from verifier.builtin.lean.lexer import Unreadable, read
from verifier.builtin.lean.screening import REASONS

WORDS = ("sorry", "set_option", "run_tac", "omega", "h", "IO", "x'", "α₁", "s!", "r", "e5", "b", "x1f", "«a b»")
GLUE = (" ", "\n", "\t", "", ".", ",", "(", ")", "[", "{", "}", "⟨", "+", "-", "<", "'", "''", '"', "--", "/-", "-/")
GLUE += ("1", "0x1", "1.", "2e3", "0b1", "«", "»", "\\", "#", "`", "!", "?", "ₗ", "¹", "é", "𝟙", "r#", "\u00a0")

_ESCAPE = r"""\\(?:[\\"'rnt]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})"""
_STRING = re.compile(rf'"(?:[^"\\]|{_ESCAPE}|\\ *\n *(?![ \n]))*"')
_CHARACTER = re.compile(rf"'(?:[^\\]|{_ESCAPE})'", re.DOTALL)
_DIGITS = re.compile(r"[0-9]+")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F_]*|0[bB][01_]*|0[oO][0-7_]*|[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][+-]?[0-9_]+)?")
_PART = "(?:[A-Za-z_α-κμ-ω][A-Za-z0-9_'!?α-κμ-ω₀-₉ₐ-ₜ]*|«[^»]*»)"
_IDENTIFIER = re.compile(rf"{_PART}(?:\.{_PART})*")
_RAW = re.compile(r'r(#*)"')


def lean_words(text: str) -> list[str] | None:
    """The words of `text` by Lean's rules (`whitespace`, `tokenFn`, `identFn`, `numberFn`, `fieldIdx`).

    Every sign that belongs to none is a token by itself, except ''. None where Lean reports an error.
    """
    found: list[str] = []
    at, last = 0, ""
    while at < len(text):
        if text[at] in " \n\t":  # Lean is given a blank for a tab
            at, last = at + 1, " "
            continue
        if text.startswith("--", at):
            at = text.index("\n", at) if "\n" in text[at:] else len(text)
            continue
        if text.startswith("/-", at):
            depth, at = 1, at + 2
            while depth:
                if at >= len(text):
                    return None
                step = {"-/": -1, "/-": 1}.get(text[at : at + 2], 0)
                depth, at = depth + step, at + (2 if step else 1)
            last = " "
            continue
        if text[at] == '"':
            match = _STRING.match(text, at)
        elif text.startswith("''", at):  # an operator where it is accepted; otherwise Lean reports an error
            at, last = at + 2, "'"
            continue
        elif text[at] == "'":
            match = _CHARACTER.match(text, at)
            if match is None and last not in ("", " ", *"([{⟨,;"):  # an operator such as ∑'
                at, last = at + 1, "'"
                continue
        elif text[at] in "0123456789":
            match = (_DIGITS if last == "." else _NUMBER).match(text, at)
        elif raw := _RAW.match(text, at):
            match = re.compile(rf'{re.escape(raw[0])}.*?"{raw[1]}', re.DOTALL).match(text, at)
        elif match := _IDENTIFIER.match(text, at):
            pass
        else:
            at, last = at + 1, text[at]
            continue
        if match is None:
            return None
        found.append(match[0])
        at, last = match.end(), ""
    return found


@settings(max_examples=300)
@given(st.lists(st.sampled_from(WORDS + GLUE * 2), max_size=9).map("".join))
def test_words_are_those_of_lean_or_the_text_is_refused(text: str) -> None:
    try:
        tokens = read(text).tokens
    except Failed as failed:
        assert failed.reason in REASONS
        return
    expected = lean_words(text)
    assert expected is not None, "accepted, but Lean reports an error"
    assert [token.text for token in tokens if token.kind != "symbol"] == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("iterate 1set_option debug.skipKernelTC true in rfl", "odd_number"),
        ("0x1set_option", "odd_number"),
        ("0b12", "odd_number"),
        ("1_sorry", "odd_number"),
        ("1sorry", "odd_number"),
        ("1.5sorry", "odd_number"),
        ("1e5sorry", "odd_number"),
        ("h.1run_tac", "odd_number"),
        ("1.sorry", "odd_number"),
        ("2π", "odd_number"),
        ("1'a'", "odd_number"),
        ("f ''\"' \" | x", "odd_quote"),
        ("f ''a", "odd_quote"),
        ("f+'a'", "odd_quote"),
        ("'ab'", "odd_quote"),
        ("'a'\"", "odd_quote"),
        ('s!"{"', "odd_string"),
        ('s!"{x /- }" -/', "odd_string"),
        ('"\\q"', "odd_string"),
        ("«a»b", "odd_identifier"),
        ("a«b»", "odd_identifier"),
        ("a <-- b", "odd_comment"),
        ("a //- b -/", "odd_comment"),
        ("/--/ a -/", "odd_comment"),
        ("é", "bad_character"),
        ("ｓｏｒｒｙ", "bad_character"),
        ("a\u00a0b", "bad_character"),
    ],
)
def test_two_readings_are_refused(text: str, reason: str) -> None:
    with pytest.raises(Unreadable) as refused:
        read(text)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("h.1.2.symm", ["h", "1", "2", "symm"]),
        ("f '' s ∪ f ⁻¹' t", ["f", "s", "f", "t"]),
        ("∑' n, Σ' x, a[i]'h", ["n", "x", "a", "i", "h"]),
        ("simp <;>-- both\n omega", ["simp", "omega"]),
        ("Aᵀ * B, x² + 𝟙, λ x => x", ["A", "B", "x", "x", "x"]),
        ("0x1F + 1.5e-3 + 1_000", ["0x1F", "1.5e-3", "1_000"]),
        ('s!"{x} is"', ["s!", '"{x} is"']),
        ("\tomega\t-- tab\tin a comment", ["omega"]),
        ("#s ≤ 3", ["s", "3"]),
    ],
)
def test_honest_text_is_split(text: str, expected: list[str]) -> None:
    source = read(text)
    assert [token.text for token in source.tokens if token.kind != "symbol"] == expected
    assert "\t" not in source.blank
