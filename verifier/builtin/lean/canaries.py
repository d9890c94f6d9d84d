"""Known-false statements, tried for ever: the day one of them is proved, no verdict of this verifier means anything.

They go to the back end past extraction and screening, so that what is tested is Lean and the checker as installed: a
back end that calls anything valid, a library with an inconsistent axiom, a checker that lost a condition. One true
statement goes along: if it is not proved, the installation is broken, which is trouble and no alarm.
"""

from __future__ import annotations

from dataclasses import dataclass

HONEST = ("(1 : Nat) + 1 = 2", " decide")


@dataclass(frozen=True, slots=True)
class Canary:
    """A false statement with a text that must not prove it."""

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
