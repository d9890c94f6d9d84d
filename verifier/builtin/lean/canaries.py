"""Known-false statements that are tried regularly; once one of them is proved, no verdict can be trusted any more.

They go to the back end without extraction and screening, so that they test Lean and the checker as installed. They
detect a back end that accepts anything, a library with an inconsistent axiom, and a checker that lacks a condition. One
true statement is tried with them: if it is not proved, the installation is broken, which is an error but no alarm.
"""

from __future__ import annotations

from dataclasses import dataclass

TRUE_STATEMENT = ("(1 : Nat) + 1 = 2", " decide")
"""A true statement and its proof."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A false statement and a proof that must be rejected."""

    name: str
    statement: str
    proof: str


CANARIES = (
    Canary("sorry", "(1 : Nat) = 2", " sorry"),
    Canary("sorry_axiom", "(1 : Nat) = 2", " exact sorryAx _ true"),
    Canary("decide", "(1 : Nat) = 2", " decide"),
    Canary("compiled", "(1 : Nat) = 2", " native_decide"),
    Canary("break_out", "(1 : Nat) = 2", " decide\naxiom oops : (1 : Nat) = 2"),
    Canary("swallow", "(1 : Nat) = 2", " decide -/ /-"),
    Canary("kernel", "(0 : Nat) = 1", " set_option debug.skipKernelTC true in exact (rfl : (0 : Nat) = 0)"),
)
