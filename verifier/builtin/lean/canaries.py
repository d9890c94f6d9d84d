"""Proofs that must be refused, tried regularly; once one of them is accepted, no verdict can be trusted any more.

They go to the back end without extraction and screening, so that they test Lean and the checker as installed. They
detect a back end that accepts anything, a library with an inconsistent axiom, and a checker that lacks a condition:
there is one for each hole that a checker of this kind has had. With `kernel`, the checker does not look at the syntax
either, and only the second type check can refuse. One true statement is tried with them: if it is not proved, the
installation is broken, which is an error but no alarm.
"""

from __future__ import annotations

from dataclasses import dataclass

TRUE_STATEMENT = ("(1 : Nat) + 1 = 2", " decide")
"""A true statement and its proof."""

CONTEXT = "infixl:70 \" '' \" => fun (f : Nat → Nat) (n : Nat) => f n\n"
"""Commands after the imports of the canaries: an operator that begins like a character, as Mathlib has one."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A statement and a proof of it that must be rejected; `kernel`: by the second type check alone."""

    name: str
    statement: str
    proof: str
    kernel: bool = False


_FALSE = "(1 : Nat) = 2"
_UNCHECKED = "set_option debug.skipKernelTC true in decide +kernel"
_PROGRAM = 'match Lean.findSysroot "sieve-canary" () with | .ok .. => 1 | .error .. => 2'

CANARIES = (
    Canary("sorry", _FALSE, " sorry"),
    Canary("sorry_axiom", _FALSE, " exact sorryAx _ true"),
    Canary("decide", _FALSE, " decide"),
    Canary("compiled", _FALSE, " native_decide"),
    Canary("break_out", _FALSE, " decide\naxiom oops : (1 : Nat) = 2"),
    Canary("swallow", _FALSE, " decide -/ /-"),
    Canary("unchecked", _FALSE, f" {_UNCHECKED}"),
    Canary("glued_number", _FALSE, f" iterate 1{_UNCHECKED}"),
    Canary("glued_hexadecimal", _FALSE, f" iterate 0x1{_UNCHECKED}"),
    Canary("quotes", _FALSE, f""" first | exact absurd (id ''"' " = 0) id | {_UNCHECKED} --' " """),
    Canary("unchecked_by_kernel", _FALSE, f" {_UNCHECKED}", kernel=True),
    Canary("glued_by_kernel", _FALSE, f" iterate 1{_UNCHECKED}", kernel=True),
    Canary("sorry_by_kernel", _FALSE, " iterate 1sorry", kernel=True),
    Canary("compiled_by_kernel", "(10 : Nat) < 11", " native_decide", kernel=True),
    Canary(
        "added_by_kernel",
        _FALSE,
        "\n  set_option debug.skipKernelTC true in run_tac Lean.addDecl (.thmDecl { name := `oops, levelParams := [], "
        "type := Lean.mkConst `False, value := Lean.mkConst `True.intro })\n  exact (oops : False).elim",
        kernel=True,
    ),
    Canary(
        "evaluated_by_kernel",
        "True",
        "\n  have h : Lean.reduceBool Lean.version.isRelease = Lean.reduceBool Lean.version.isRelease := rfl\n"
        "  exact trivial",
        kernel=True,
    ),
    Canary("program", TRUE_STATEMENT[0], f" simp (config := {{ maxSteps := {_PROGRAM} }})"),
    Canary(
        "program_by_field", TRUE_STATEMENT[0], ' simp (config := { maxSteps := ("x" : System.FilePath).pathExists })'
    ),
    Canary("loaded_library", TRUE_STATEMENT[0], ' have := Lean.loadDynlib "sieve-canary"\n decide'),
)
