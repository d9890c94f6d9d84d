"""The text given to Lean for one check, and the reading of Lean's answer.

    imports of the header, import Lean
    the checker (checker.lean)                      parsed before the header can change notations
    the rest of the header (open, variable, …)
    #sieve_check "nonce" "name" "statement" "proof" "mode" "heartbeats"

Statement and proof are string literals, so nothing that the model wrote is part of the file's own commands. Lean
answers with one information message that carries the nonce. The nonce is drawn after the answer was written, and a
proof cannot read the command that contains it, so only the checker can write this message. Two such messages, or one
beside errors of the file itself, prove nothing (NoFinding).
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

AXIOMS = frozenset({"propext", "Classical.choice", "Quot.sound"})
"""The axioms that a proof may rest on."""

Library = Literal["walk", "trust"]
"""Axioms of imported theorems: `walk` collects them all, `trust` looks for the known unsound ones only."""

_IMPORT = re.compile(r"\s*(import|public import|prelude|module)\b")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of Lean: `severity` is info, warning, error or trace."""

    severity: str
    text: str


@dataclass(frozen=True, slots=True)
class Check:
    """One question to Lean: `prelude` (shared by checks, cacheable), then `command`."""

    prelude: str
    command: str
    nonce: str

    @property
    def file(self) -> str:
        """Both as one file."""
        return f"{self.prelude}\n{self.command}\n"


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
def prelude(header: str) -> str:
    """The header with `import Lean` and the checker; equal for equal headers, so that back ends can cache it."""
    lines = header.replace("\r\n", "\n").split("\n")
    last = max((place for place, line in enumerate(lines) if _IMPORT.match(line)), default=-1)
    imports = [line.strip() for line in lines[: last + 1]]
    if "import Lean" not in imports:
        imports.append("import Lean")
    return "\n".join([*imports, checker(), *lines[last + 1 :]]).rstrip() + "\n"


def assemble(
    header: str, name: str, head: str, proof: str, *, library: Library = "walk", heartbeats: int = 200_000
) -> Check:
    """The check of one proof; `head` is the statement up to `:=`, `proof` the screened tactic block after `by`."""
    nonce = secrets.token_hex(16)
    arguments = (nonce, name, f"{head} by", proof, library, str(heartbeats))
    return Check(prelude(header), "#sieve_check " + " ".join(map(literal, arguments)), nonce)


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
