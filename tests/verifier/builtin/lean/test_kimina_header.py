"""The text of a check as a Kimina server wants it."""

from __future__ import annotations

import re

import pytest

from verifier.builtin.lean.assembly import assemble, checker
from verifier.builtin.lean.backends import BackendTrouble
from verifier.builtin.lean.kimina_header import body, commands, header, load_checker

COMMAND = re.compile(
    r"(/--.*?-/\n)?(partial )?(def|elab|namespace|open|end|structure|inductive|abbrev|instance|set_option|mutual)\b",
    re.S,
)


def test_the_checker_is_cut_into_whole_commands_on_one_line() -> None:
    found = commands(checker())
    for command in found:
        assert COMMAND.match(command), command
    assert "".join("".join(found).split()) in "".join(checker().split())
    assert found[0].startswith("namespace") and found[-1].startswith("end")
    assert len(load_checker().splitlines()) == 1


def test_a_mutual_block_is_one_command() -> None:
    block = "mutual\ndef a : Nat := 1\n\nopen Nat in\ndef b : Nat := 2\nend"
    source = f"namespace A\n\n{block}\n/-- Text.\n-/\ndef c :=\n  1\n\n  + 2\n\nend A\n"
    assert commands(source) == ["namespace A", block, "/-- Text.\n-/\ndef c :=\n  1\n\n  + 2", "end A"]


def test_header_and_body_are_what_the_server_makes_of_the_snippet() -> None:
    check = assemble("-- a comment\nimport Mathlib\nimport Aesop\nopen Nat", "t", "theorem t : True :=", "\n  trivial")
    lines = f"{header(check)}\n{body(check)}".splitlines()
    assert lines[:2] == ["import Mathlib", "import Aesop"]
    assert lines[2].startswith("import Lean elab ")
    assert lines[3] == "open Nat" and lines[4].startswith("#sieve_check") and len(lines) == 5


@pytest.mark.parametrize("sign", "\x85\u2028\u2029")
def test_characters_at_which_the_server_would_break_a_line_are_escaped(sign: str) -> None:
    check = assemble("", "t", "theorem t : True :=", f" -- {sign}sorry\n  trivial")
    assert len(body(check).splitlines()) == 1 and f"\\u{ord(sign):04x}sorry" in body(check)
    with pytest.raises(BackendTrouble, match="line end of Unicode"):
        body(assemble(f"open Nat -- {sign}end", "t", "theorem t : True :=", " trivial"))


def test_a_module_that_the_server_would_take_for_mathlib_is_refused() -> None:
    assert header(assemble("import Mathlib.Tactic", "t", "theorem t : True :=", " trivial")).startswith(
        "import Mathlib.T"
    )
    with pytest.raises(BackendTrouble, match="for Mathlib"):
        header(assemble("import MathlibExtras", "t", "theorem t : True :=", " trivial"))
