"""Access of the tests to Lean: an installed one if there is one, otherwise recorded answers of a real one.

Installed means the command in SIEVE_TEST_LEAN, or `lean` on PATH (LEAN_PATH is passed on). All checks go into one file
and one start, since a start may take minutes. `SIEVE_RECORD_LEAN=1` writes the answers to exchanges/.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.verifier.builtin.lean.lean_peers import _NONCE, EXCHANGES, key
from verifier.builtin.lean.assembly import Check, Finding, Message, assemble, finding
from verifier.builtin.lean.backends import messages
from verifier.builtin.lean.canaries import CONTEXT, Canary
from verifier.builtin.lean.extraction import read_record, tactics
from verifier.builtin.lean.screening import screen
from verifier.builtin.lean.verifier import Lean

START_SECONDS = 3000.0


def real_lean() -> list[str]:
    """The command of an installed Lean; empty if there is none."""
    if said := os.environ.get("SIEVE_TEST_LEAN"):
        return shlex.split(said)
    return ["lean"] if shutil.which("lean") else []


def library() -> str:
    """`trust` for a Lean whose library has no proofs (its WebAssembly build), from which the recorded findings come."""
    return os.environ.get("SIEVE_TEST_LEAN_LIBRARY", "walk") if real_lean() else "trust"


def checks(cases: Sequence[tuple[str, dict[str, Any], str]], heartbeats: int = 20_000) -> list[Check]:
    """The check of each (id, record, answer), screened."""
    found = []
    for _, record, answer in cases:
        trusted = read_record(record)
        proof = screen(tactics(answer, trusted))
        found.append(
            assemble(trusted.header, trusted.name, trusted.head, proof, library=library(), heartbeats=heartbeats)  # type: ignore[arg-type]
        )
    return found


def unscreened(record: dict[str, Any], proof: str, heartbeats: int = 20_000, *, kernel: bool = False) -> Check:
    """The check of a tactic block without screening; with `kernel` also without the checker's look at the syntax."""
    trusted = read_record(record)
    return assemble(
        trusted.header,
        trusted.name,
        trusted.head,
        proof,
        library=library(),  # type: ignore[arg-type]
        heartbeats=heartbeats,
        kernel=kernel,
    )


def canary(one: Canary, heartbeats: int = 20_000) -> Check:
    """The check of a canary, as the verifier makes it."""
    return assemble(
        "\n" + CONTEXT,
        "SieveCanary",
        f"theorem SieveCanary : {one.statement} :=",
        one.proof,
        library=library(),  # type: ignore[arg-type]
        heartbeats=heartbeats,
        kernel=one.kernel,
    )


def ask_real(asked: Sequence[Check]) -> list[list[Message]]:
    """The answers of an installed Lean, started once; different headers are separated by sections."""
    first = asked[0].prelude
    assert all(check.prelude.startswith(first.rstrip()) for check in asked)
    parts = [first]
    if library() == "trust":
        # Such a build reads every file as a module: what elaborates must be `meta`, and theorems must be `public`.
        marked = first.replace("namespace SieveCheck\n", "meta section\nnamespace SieveCheck\n", 1)
        parts = [f"{marked}end\npublic section\n"]
    for number, (own, group) in enumerate(
        itertools.groupby(asked, lambda check: check.prelude.removeprefix(first.rstrip()).strip())
    ):
        commands = [check.command for check in group]
        if own:  # opens, variables, declarations of these records alone
            inner = [line.split()[1] for line in own.splitlines() if line.startswith("namespace ")]
            ends = [f"end {name}" for name in reversed(inner)]
            commands = [f"section Case{number}", own, *commands, *ends, f"end Case{number}"]
        parts += commands
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "checks.lean").write_text("\n".join(parts) + "\n", encoding="utf-8")
        done = subprocess.run(
            [*real_lean(), "--json", "checks.lean"],
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=START_SECONDS,
            check=False,
        )
    said = messages([json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")])
    assert said, f"exit code {done.returncode}: {done.stdout[-500:]} {done.stderr[-500:]}"
    stray = [one.text for one in said if one.severity == "error"]
    assert not stray, stray[:3]
    return [[one for one in said if check.nonce in one.text] for check in asked]


def record(asked: Sequence[Check], said: Sequence[Sequence[Message]]) -> None:
    """Replace the recorded findings by the answers of an installed Lean."""
    about = f"recorded from a real Lean ({os.environ.get('SIEVE_TEST_LEAN_ABOUT', 'unnamed')}), library = {library()}"
    findings = {
        key(check.prelude, check.command): [
            {"severity": one.severity, "data": one.text.replace(check.nonce, _NONCE)} for one in lines
        ]
        for check, lines in zip(asked, said, strict=True)
    }
    kept = {"about": about, "findings": dict(sorted(findings.items()))}
    (EXCHANGES / "findings.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def source() -> str:
    """Where the findings of this run come from, to be printed."""
    if lean := real_lean():
        return f"a real Lean: {' '.join(lean)} (library = {library()})"
    kept = json.loads((EXCHANGES / "findings.json").read_text(encoding="utf-8"))
    return f"kept exchanges, {kept['about']}"


def recorded(asked: Sequence[Check]) -> list[list[Message]]:
    """The recorded answers of a real Lean to these checks."""
    kept = json.loads((EXCHANGES / "findings.json").read_text(encoding="utf-8"))["findings"]
    return [
        messages(
            {**one, "data": one["data"].replace(_NONCE, check.nonce)} for one in kept[key(check.prelude, check.command)]
        )
        for check in asked
    ]


def ask(asked: Sequence[Check]) -> list[Finding]:
    """The findings, from an installed Lean if there is one, else from the recording."""
    if real_lean():
        said = ask_real(asked)
        if os.environ.get("SIEVE_RECORD_LEAN"):
            record(asked, said)
    else:
        said = recorded(asked)
    return [finding(check, lines) for check, lines in zip(asked, said, strict=True)]


def judge(verifier: Lean, case_record: dict[str, Any], answer: str, said: Finding) -> str:
    """outcome/reason of the verifier for a finding."""
    trusted = read_record(case_record)
    judgement = verifier._judge(trusted, screen(tactics(answer, trusted)), said)
    return f"{judgement.outcome}/{judgement.reason}"
