"""What a back end is: something that gives Lean's messages for a check, or says that it could not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from verifier.builtin.lean.assembly import Check, Message

MAX_OUTPUT = 8 << 20
"""Bytes that Lean may say about one check."""

TROUBLES = frozenset({"deadline", "lean_died", "lean_missing", "lean_output", "server", "server_busy", "server_key"})


class BackendTrouble(Exception):
    """Nothing was learnt about the proof; `reason` is one of TROUBLES."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Backend(Protocol):
    """Safe to use from as many threads as the settings promise."""

    def run(self, check: Check, seconds: float) -> list[Message]:
        """Lean's messages for the whole of `check`. Raises BackendTrouble, also when `seconds` have passed."""

    def close(self) -> None:
        """End everything it started."""


def messages(said: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Lean's messages as JSON objects with `severity` and `data` (REPL, Kimina and `lean --json` alike)."""
    found = []
    for item in said:
        severity, text = item.get("severity"), item.get("data")
        if not isinstance(severity, str) or not isinstance(text, str):
            raise BackendTrouble("lean_output", f"a message without severity and data: {item!r:.200}")
        found.append(Message("info" if severity == "information" else severity, text))
    return found


def response(said: object) -> list[Message]:
    """The messages of a REPL's answer to a command. Raises BackendTrouble for its own errors (`{"message": …}`)."""
    if not isinstance(said, dict):
        raise BackendTrouble("lean_output", f"not an object: {said!r:.200}")
    if "env" not in said:
        raise BackendTrouble("lean_output", f"no environment: {json.dumps(said)[:300]}")
    listed = said.get("messages", [])
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise BackendTrouble("lean_output", f"messages: {listed!r:.200}")
    return messages(listed)
