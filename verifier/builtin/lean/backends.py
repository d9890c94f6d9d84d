"""The interface of Lean back ends, and the parsing of Lean's messages that they share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from verifier.builtin.lean.assembly import Check, Message

MAX_OUTPUT = 8 << 20
"""The most output that Lean may give for one check, bytes."""

TROUBLES = frozenset({"deadline", "lean_died", "lean_missing", "lean_output", "server", "server_busy", "server_key"})


class BackendTrouble(Exception):
    """The check could not be carried out; `reason` is one of TROUBLES."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Backend(Protocol):
    """A way to run Lean; safe to use from as many threads as the queue's `concurrency`."""

    def run(self, check: Check, seconds: float) -> list[Message]:
        """Lean's messages for the whole of `check`. Raises BackendTrouble, also after `seconds`."""

    def close(self) -> None:
        """End everything that the back end started."""


def json_object(data: bytes | bytearray | str) -> dict[str, Any]:
    """The JSON object in `data`. Raises BackendTrouble lean_output for anything else."""
    try:
        said = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BackendTrouble("lean_output", f"unreadable: {data[:200]!r}") from error
    if not isinstance(said, dict):
        raise BackendTrouble("lean_output", f"not an object: {said!r:.200}")
    return said


def messages(said: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Lean's messages from JSON objects with `severity` and `data`, as the REPL, Kimina and `lean --json` write them.

    Raises BackendTrouble for an object that lacks them.
    """
    found = []
    for item in said:
        severity, text = item.get("severity"), item.get("data")
        if not isinstance(severity, str) or not isinstance(text, str):
            raise BackendTrouble("lean_output", f"a message without severity and data: {item!r:.200}")
        found.append(Message("info" if severity == "information" else severity, text))
    return found


def response(said: object) -> list[Message]:
    """The messages in a REPL's answer to a command. Raises BackendTrouble for its own errors (`{"message": …}`)."""
    if not isinstance(said, dict):
        raise BackendTrouble("lean_output", f"not an object: {said!r:.200}")
    if "env" not in said:
        raise BackendTrouble("lean_output", f"no environment: {json.dumps(said)[:300]}")
    listed = said.get("messages", [])
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise BackendTrouble("lean_output", f"messages: {listed!r:.200}")
    return messages(listed)
