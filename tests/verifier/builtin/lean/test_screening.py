"""The lexer, screening, extraction and assembly of Lean answers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifier.builtin.failed import Failed
from verifier.builtin.lean.assembly import Message, NoFinding, assemble, finding, literal, split
from verifier.builtin.lean.extraction import read_record, tactics
from verifier.builtin.lean.lexer import Unreadable, read
from verifier.builtin.lean.screening import OPTIONS, REASONS, screen

RECORD = {
    "header": "import Mathlib\n  open BigOperators Real Nat Topology\n",
    "name": "mathd_1",
    "statement": "theorem mathd_1 (b h v : ℝ) (h₀ : 0 < b ∧ 0 < h)\n    (h₁ : v = 1 / 3 * (b * h)) : v = 65 := by\n",
}


def words(text: str) -> list[str]:
    return [token.text for token in read(text).tokens]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rw [h₀.1, foo'] -- sorry", ["rw", "[", "h₀.1", ",", "foo'", "]"]),
        ("a /- x /- y -/ z -/ b", ["a", "b"]),
        ("/-/ a -/ b", ["b"]),
        ('"a \\" -- b" c', ['"a \\" -- b"', "c"]),
        ('r#"a " -- "# c', ['r#"a " -- "#', "c"]),
        ("'\"' -- \"", ["'\"'"]),
        ("«a b».c d", ["«a b».c", "d"]),
        ("h' 'a' '\\n'", ["h'", "'a'", "'\\n'"]),
        ("x--y\nz", ["x", "z"]),
        ("(\t-- a\tb\n1)", ["(", "1", ")"]),
        ("(-- a\n1)", ["(", "1", ")"]),
    ],
)
def test_tokens_are_those_of_lean(text: str, expected: list[str]) -> None:
    got = words(text)
    assert "".join(got) == "".join(expected)
    assert [word for word in got if word in expected] == [word for word in expected if word in got]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a /- b", "unterminated_comment"),
        ("/- /- -/", "unterminated_comment"),
        ('a "b', "unterminated_string"),
        ("a <-- b", "odd_comment"),
        ("a *-- b", "odd_comment"),
        ("«a", "odd_identifier"),
        ("/-" * 33 + "-/" * 33, "too_deep"),
    ],
)
def test_ambiguous_text_is_refused(text: str, reason: str) -> None:
    with pytest.raises(Unreadable) as refused:
        read(text)
    assert refused.value.reason == reason


@given(st.text(alphabet="ab'\"\\-/ \n«».!#@₁λ", max_size=60))
def test_blanking_comments_keeps_every_line_and_column(text: str) -> None:
    try:
        source = read(text)
    except Unreadable:
        return
    assert len(source.blank) == len(text)
    assert all(after in (before, " ") for before, after in zip(text, source.blank, strict=True))
    assert all(source.blank[token.start : token.end] == token.text for token in source.tokens)


@given(st.text(alphabet="ab'\"\\-/ \n«».!#@₁λ", max_size=60))
def test_screening_is_idempotent(text: str) -> None:
    try:
        once = screen(text)
    except Failed as failed:
        assert failed.reason in REASONS
        return
    assert screen(once) == once


@given(st.text(max_size=80))
def test_any_text_is_screened_or_refused_with_a_known_reason(text: str) -> None:
    try:
        screen(text)
    except Failed as failed:
        assert failed.reason in REASONS


@given(st.sampled_from(sorted(OPTIONS)), st.integers(-5, 10**13))
def test_an_option_is_set_only_within_its_limit_and_only_for_one_tactic(name: str, value: int) -> None:
    limit = OPTIONS[name]
    try:
        screen(f"set_option {name} {value} in simp")
        assert limit is not None and 0 < value <= limit
    except Failed as failed:
        assert failed.reason == "option"
        assert limit is None or not 0 < value <= limit
    with pytest.raises(Failed):
        screen(f"set_option {name} {1 if limit else 'true'}\n simp")


@pytest.mark.parametrize(
    "name",
    [
        "Polynomial.eval",
        "Nat.rec",
        "h.symm",
        "Finset.sum_comm",
        "hopen",
        "ending",
        "Real.sqrt",
        "decide",
        "instDecidableEqNat",
        "axiom'",
        "(show 5! = 120 from rfl)",
        "by aesop (add unsafe 50% apply foo, unsafe 10% bar)",
    ],
)
def test_names_that_only_resemble_forbidden_ones_are_accepted(name: str) -> None:
    assert screen(f"exact {name}") == f"exact {name}"


@pytest.mark.parametrize(
    "answer",
    [
        "  norm_num [h₁]",
        "  norm_num [h₁]\n```",
        "```lean4\n" + RECORD["header"] + "/-- informal sorry -/\n" + RECORD["statement"] + "  norm_num [h₁]\n```\nQED",
        "Thinking: h is positive.\n```lean\n  norm_num [h₁]\n```",
        RECORD["statement"] + "  norm_num [h₁]\n",
        RECORD["statement"].replace("\n   ", "").replace("\n", "\r\n") + "  norm_num [h₁]\r\n",
    ],
)
def test_the_tactic_block_is_found(answer: str) -> None:
    assert tactics(answer, read_record(RECORD)).strip() == "norm_num [h₁]"


def test_the_column_names_of_data_sets_are_accepted() -> None:
    record = read_record(
        {"src_context": "import X\n", "theorem_statement": "theorem a : True := sorry", "theorem_full_name": "a"}
    )
    assert (record.header, record.head, record.name) == ("import X\n", "theorem a : True :=", "a")


@pytest.mark.parametrize(
    "statement", ["", "theorem a : True := by trivial", "def a : Nat := by", "theorem a : True", "theorem a : /- := by"]
)
def test_a_record_without_an_open_theorem_is_refused(statement: str) -> None:
    with pytest.raises(ValueError):
        read_record({"statement": statement, "name": "a"})


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=60))
def test_a_string_literal_ends_where_it_should(text: str) -> None:
    written = literal(text)
    try:
        source = read(written + " end")
    except Unreadable as refused:
        assert refused.reason == "odd_string" and "{" in text  # could be read as an interpolated string
    else:
        assert [token.kind for token in source.tokens] == ["string", "identifier"]
        assert source.tokens[0].text == written
    assert json.loads(written) == text  # the escapes used are common to Lean and JSON


def test_imports_come_first_and_the_checker_before_whatever_else_the_header_holds() -> None:
    text = "".join(split("import Mathlib\n-- why\nimport Aesop\n\nset_option maxRecDepth 900\nopen Nat\n"))
    assert text.startswith("import Mathlib\nimport Aesop\nimport Lean\n")
    assert text.index("namespace SieveCheck") < text.index("open Nat")
    assert "".join(split("")).startswith("import Lean\n")


def test_only_a_single_finding_with_the_nonce_and_without_errors_is_accepted() -> None:
    check = assemble("", "a", "theorem a : True :=", "\n  trivial")
    said = Message("info", json.dumps({"sieve": check.nonce, "status": "ok", "detail": "", "axioms": "propext"}))
    assert finding(check, [Message("warning", "unused"), said]).axioms == ("propext",)
    forged = Message("info", json.dumps({"sieve": "0" * 32, "status": "ok", "detail": "", "axioms": ""}))
    for messages in (
        [],
        [forged],
        [said, said],
        [said, Message("error", "the header")],
        [Message("error", said.text)],
        [Message("info", "not JSON " + check.nonce)],
        [Message("info", json.dumps({"sieve": check.nonce, "status": 1, "detail": "", "axioms": ""}))],
    ):
        with pytest.raises(NoFinding):
            finding(check, messages)


def test_no_two_checks_share_a_nonce() -> None:
    assert len({assemble("", "a", "theorem a : True :=", " trivial").nonce for _ in range(100)}) == 100
