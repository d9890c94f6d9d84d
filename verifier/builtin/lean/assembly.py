"""The text given to Lean: trusted header, the checker, and one `#sieve_check` with everything as string literals.

    imports of the header, import Lean
    the checker (checker.lean)                      parsed before the header can change notations
    the rest of the header (open, variable, …)
    #sieve_check "nonce" "name" "statement" "proof" "mode" "heartbeats"

So what the model wrote is never part of the file's own commands. Lean answers with one information message that
carries the nonce; the nonce is drawn after the answer was written and a proof cannot read the command it stands in, so
only the checker can say it. A message that carries it twice, or beside errors of the file itself, is trouble.
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
"""What a proof may rest on."""

Library = Literal["walk", "trust"]
"""Axioms of imported theorems: looked up by Lean, or taken on trust except the known unsound ones."""

_IMPORT = re.compile(r"\s*(import|public import|prelude|module)\b")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of Lean: `severity` is info, warning, error or trace."""

    severity: str
    text: str


@dataclass(frozen=True, slots=True)
class Check:
    """One question to Lean: `prelude` (shared, cacheable) then `command`."""

    prelude: str
    command: str
    nonce: str

    @property
    def file(self) -> str:
        """Both as one file."""
        return f"{self.prelude}\n{self.command}\n"


@dataclass(frozen=True, slots=True)
class Finding:
    """What the checker said: `status` ok, or where it stopped; `axioms` of the proof when ok."""

    status: str
    detail: str
    axioms: tuple[str, ...]


class NoFinding(ValueError):
    """Lean answered, but not with exactly one finding under our nonce: nothing can be concluded about the proof."""


@cache
def checker() -> str:
    """The checker's source."""
    return resources.files("verifier.builtin.lean").joinpath("checker.lean").read_text(encoding="utf-8")


@cache
def prelude(header: str) -> str:
    """The header with `import Lean` and the checker in it; the same text for the same header, so back ends cache it."""
    lines = header.replace("\r\n", "\n").split("\n")
    last = max((place for place, line in enumerate(lines) if _IMPORT.match(line)), default=-1)
    imports = [line.strip() for line in lines[: last + 1]]
    if "import Lean" not in imports:
        imports.append("import Lean")
    return "\n".join([*imports, checker(), *lines[last + 1 :]]).rstrip() + "\n"


def assemble(
    header: str, name: str, head: str, proof: str, *, library: Library = "walk", heartbeats: int = 200_000
) -> Check:
    """`head` is the statement up to `:=`, `proof` the screened tactic block as it stands after `by`."""
    nonce = secrets.token_hex(16)
    arguments = (nonce, name, f"{head} by", proof, library, str(heartbeats))
    return Check(prelude(header), "#sieve_check " + " ".join(map(literal, arguments)), nonce)


def literal(text: str) -> str:
    """`text` as a Lean string literal on one line."""
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
        # The proof's own errors are inside the finding: these are the header's, the checker's or the tool's.
        raise NoFinding(f"the file around the proof does not elaborate: {errors[0][:500]}")
    if len(found) != 1:
        raise NoFinding(f"{len(found)} findings instead of one; Lean said {[m.text[:100] for m in messages[:3]]}")
    said = found[0]
    status, detail, axioms = said.get("status"), said.get("detail"), said.get("axioms")
    if not isinstance(status, str) or not isinstance(detail, str) or not isinstance(axioms, str):
        raise NoFinding(f"unreadable finding: {said!r:.500}")
    return Finding(status, detail, tuple(axioms.split()))
