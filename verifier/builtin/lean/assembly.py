"""The text given to Lean for one check, and the reading of Lean's answer.

    imports of the header, import Lean              Check.imports: nothing else, not even a comment
    the checker (checker.lean)                      Check.context: parsed before the header can change notations
    the rest of the header (open, variable, …)      … up to here; imports + context = Check.prelude
    #sieve_check "nonce" "name" "statement" "proof" "mode" heartbeats      Check.command, one line

A back end elaborates `prelude` once per environment and then sends only commands: each leaves the environment as it
was. `several` makes one check of several with the same prelude, for the canaries and for a server that keeps nothing
but imports; each finds its own message by its nonce.

Statement and proof are string literals, so nothing that the model wrote is part of the file's own commands. Lean
answers with one information message that carries the nonce. The nonce is drawn after the answer was written, and a
proof that runs no program cannot read the command that contains it, so only the checker can write this message. A
program could: that none runs is what the checker's look at the syntax is for, before anything is elaborated. Two such
messages, or one beside errors of the file itself, prove nothing (NoFinding).
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

from verifier.builtin.lean.lexer import comment_end

AXIOMS = frozenset({"propext", "Classical.choice", "Quot.sound"})
"""The axioms that a proof may rest on."""

Library = Literal["walk", "trust"]
"""Axioms of imported theorems: `walk` collects them all, `trust` looks for the known unsound ones only."""

_LEADING = re.compile(r"\s*(import\s+[\w.«»!?']+)|\s*(--|/-)|\s+")
_NOT_ORDINARY = re.compile(r"((?:public|meta|private|import|module|prelude)\b.{0,40})")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of Lean: `severity` is info, warning, error or trace."""

    severity: str
    text: str


@dataclass(frozen=True, slots=True)
class Check:
    """One question to Lean: `prelude` (equal for equal headers, to be elaborated once), then `command`.

    `imports` are the import lines alone, each ending in a line break; `context` is the checker and the rest of the
    header. `command` is one line for each question (see `several`) and leaves the environment unchanged.
    """

    imports: str
    context: str
    command: str
    nonce: str

    @property
    def prelude(self) -> str:
        """What comes before the command: `imports`, then `context`."""
        return self.imports + self.context

    @property
    def file(self) -> str:
        """Prelude and command as one file."""
        return f"{self.prelude}\n{self.command}\n"


def several(checks: Sequence[Check]) -> Check:
    """Checks of one prelude as one, to be run together; its messages hold the finding of each, by its own nonce.

    Raises ValueError unless they have the same prelude.
    """
    if len({check.prelude for check in checks}) != 1:
        raise ValueError(f"{len(checks)} checks without a common prelude; join those of equal headers")
    first = checks[0]
    return Check(first.imports, first.context, "\n".join(check.command for check in checks), first.nonce)


@dataclass(frozen=True, slots=True)
class Finding:
    """The checker's answer: `status` ok, or the step at which it stopped; `axioms` of the proof if ok."""

    status: str
    detail: str
    axioms: tuple[str, ...]


class NoFinding(ValueError):
    """Lean did not answer with exactly one finding under the check's nonce: nothing is known about the proof."""


@cache
def checker() -> str:
    """The source of checker.lean."""
    return resources.files("verifier.builtin.lean").joinpath("checker.lean").read_text(encoding="utf-8")


@cache
def split(header: str) -> tuple[str, str]:
    """The header as (imports, context), see Check: equal for equal headers, so that back ends can cache it.

    Raises ValueError for a header of a file that is not an ordinary one (`module`, `prelude`).
    """
    text = plain(header)
    imports, at = [], 0
    while found := _LEADING.match(text, at):
        if found[1] is None:  # blanks or a comment
            at = comment_end(text, found.end() - 2) if found[2] else found.end()
            continue
        imports.append(" ".join(found[1].split()))
        at = found.end()
    if refused := _NOT_ORDINARY.match(text, at):
        raise ValueError(f"record.header has {refused[1]!r}: give imports, each by its module's name, first")
    if "import Lean" not in imports:
        imports.append("import Lean")
    return "\n".join(imports) + "\n", "\n".join([checker(), text[at:].strip("\n")]).rstrip() + "\n"


def plain(text: str) -> str:
    """`text` with the line breaks of Lean, which knows neither CRLF inside a string nor a tab."""
    return text.replace("\r\n", "\n").replace("\t", " ")


def assemble(
    header: str,
    name: str,
    head: str,
    proof: str,
    *,
    library: Library = "walk",
    heartbeats: int = 200_000,
    kernel: bool = False,
) -> Check:
    """The check of one proof; `head` is the statement up to `:=`, `proof` the screened tactic block after `by`.

    With `kernel` the checker does not look at the proof's syntax, and the second type check decides alone.
    """
    nonce = secrets.token_hex(16)
    mode = f"{library} kernel" if kernel else library
    arguments = " ".join(map(literal, (nonce, name, f"{head} by", proof, mode)))
    imports, context = split(header)
    return Check(imports, context, f"#sieve_check {arguments} {heartbeats}", nonce)


def literal(text: str) -> str:
    """`text` as a one-line Lean string literal. Raises ValueError for characters that it cannot hold."""
    out = []
    for sign in text:
        match sign:
            case "\\" | '"':
                out.append("\\" + sign)
            case "\n":
                out.append("\\n")
            case "\t":
                out.append("\\t")
            case _:
                if sign < " " or "\ud800" <= sign <= "\udfff":
                    raise ValueError(f"U+{ord(sign):04X} cannot stand in a Lean string")
                out.append(sign)
    return '"' + "".join(out) + '"'


def finding(check: Check, messages: Sequence[Message]) -> Finding:
    """The checker's finding among Lean's messages. Raises NoFinding with what Lean said instead."""
    found: list[dict[str, Any]] = []
    for message in messages:
        if check.nonce not in message.text:
            continue
        if message.severity != "info":
            raise NoFinding(f"the check itself failed: {message.text[:500]}")
        try:
            said = json.loads(message.text)
        except ValueError as error:
            raise NoFinding(f"unreadable finding: {message.text[:500]}") from error
        if not isinstance(said, dict) or said.get("sieve") != check.nonce:
            raise NoFinding(f"unreadable finding: {message.text[:500]}")
        found.append(said)
    errors = [message.text for message in messages if message.severity == "error"]
    if errors:
        # The proof's own errors are reported in the finding; these are the header's, the checker's or the tool's.
        raise NoFinding(f"the file around the proof does not elaborate: {errors[0][:500]}")
    if len(found) != 1:
        raise NoFinding(f"{len(found)} findings instead of one; Lean said {[m.text[:100] for m in messages[:3]]}")
    said = found[0]
    status, detail, axioms = said.get("status"), said.get("detail"), said.get("axioms")
    if not isinstance(status, str) or not isinstance(detail, str) or not isinstance(axioms, str):
        raise NoFinding(f"unreadable finding: {said!r:.500}")
    return Finding(status, detail, tuple(axioms.split()))
