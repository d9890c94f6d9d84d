"""The verifier `lean`: extraction, screening, the check by Lean, and the canaries.

Record: see extraction.Record (`header`, `statement`, `name`). A pass means that Lean's kernel accepted exactly one
theorem of the record's name and type, resting on nothing but the allowed axioms. Whatever is wrong with the answer is
`fail`; whatever is wrong with the record, the installation or the machine is `error`. Once a canary has been accepted,
every verdict is `error`/`quarantined` until somebody restarts the process.
"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verifier.builtin.failed import Failed
from verifier.builtin.lean import extraction, screening
from verifier.builtin.lean.assembly import Check, Finding, NoFinding, assemble, checker, finding, several
from verifier.builtin.lean.backends import TROUBLES, Backend, BackendTrouble
from verifier.builtin.lean.canaries import CANARIES, CONTEXT, TRUE_STATEMENT
from verifier.builtin.lean.extraction import Record, read_record, tactics
from verifier.builtin.lean.screening import screen
from verifier.builtin.lean.settings import LeanSettings
from verifier.protocol import Judgement
from verifier.sandbox.readable import Readable
from verifier.sandbox.sandbox import Sandbox

log = logging.getLogger("sieve.lean")

_FAILS = {
    "syntax": "not_lean",
    "declaration": "not_one_theorem",
    "token": "forbidden_token",
    "option": "option",
    "program": "elaboration_code",
    "proof": "not_proved",
    "absent": "not_declared",
    "kind": "not_a_theorem",
    "type": "type_changed",
    "kernel": "kernel_rejects",
    "thrown": "not_proved",
}
"""The checker's statuses that are the answer's fault → the reason codes for them."""

_TOO_EXPENSIVE = ("maximum number of heartbeats", "deterministic) timeout", "deep recursion", "maximum recursion depth")
_REPLAYED = 100_000
"""The most statements remembered as replayed; after that many, the memory is cleared."""


class Lean:
    """The verifier `lean`; its options are those of LeanSettings. Safe to call from several threads."""

    name = "lean"
    version = "2"
    reasons = frozenset(
        {"proved", "malformed_record", "quarantined", "no_finding", "axioms", "heartbeats", "replay_disagrees"}
        | {"replay_trouble"}
        | set(_FAILS.values())
        | screening.REASONS
        | extraction.REASONS
        | TROUBLES
    )

    def __init__(self, **options: Any) -> None:
        self.settings = LeanSettings.model_validate(options)
        self.version = f"2-{_fingerprint(self.settings)}"
        self._backend = open_backend(self.settings)
        self._canaries = threading.Lock()
        self._next_canaries = 0.0
        self._quarantine = ""
        self._replayed: set[str] = set()

    @property
    def quarantined(self) -> str:
        """The name of the canary that was accepted; empty while none was."""
        return self._quarantine

    @property
    def info(self) -> dict[str, str]:
        """The level of confinement and the kernel's bounds, shown in metrics; empty for a back end without programs."""
        sandbox: Sandbox | None = getattr(self._backend, "sandbox", None)
        return sandbox.info if sandbox is not None else {}

    @property
    def readable(self) -> Readable | None:
        """What Lean's programs can read; None for a back end without programs."""
        sandbox: Sandbox | None = getattr(self._backend, "sandbox", None)
        return sandbox.readable if sandbox is not None else None

    def close(self) -> None:
        """End everything that the back end started."""
        self._backend.close()

    @staticmethod
    def check_record(record: Mapping[str, Any]) -> str:
        """The name of the record's theorem. Raises ValueError with what to correct.

        What only Lean can tell (a statement that does not elaborate) is found with the first answer, as the error
        `malformed_record`.
        """
        return read_record(record).name

    def judge(self, record: Mapping[str, Any], answer: str) -> Judgement:
        """Judge one proof, see the module's docstring; never raises, whatever the answer or the record holds."""
        try:
            trusted = read_record(record)
        except ValueError as error:
            return Judgement("error", "malformed_record", str(error)[:500])
        if self._quarantine:
            return self._refuse_all()
        try:
            proof = screen(tactics(answer, trusted))
        except Failed as failed:
            return Judgement("fail", failed.reason, failed.detail)
        try:
            self.try_canaries()
            if self._quarantine:
                return self._refuse_all()
            check = self._assemble(trusted, proof)
            said = finding(check, self._backend.run(check, self.settings.seconds))
        except BackendTrouble as trouble:
            return Judgement("error", trouble.reason, trouble.detail)
        except NoFinding as nothing:
            return Judgement("error", "no_finding", str(nothing))
        return self._judge(trusted, proof, said)

    def try_canaries(self, *, now: bool = False) -> None:
        """Try the canaries if they are due (or `now`), all in one run of Lean. Raises BackendTrouble, NoFinding."""
        with self._canaries:
            if self._quarantine or (time.monotonic() < self._next_canaries and not now):
                return
            checks = [self._plain(one.statement, one.proof, kernel=one.kernel) for one in CANARIES]
            true = self._plain(*TRUE_STATEMENT)
            run = several([*checks, true])
            messages = self._backend.run(run, self.settings.seconds)
            for canary, check in zip(CANARIES, checks, strict=True):
                said = finding(check, messages)
                if self._accepts(said):
                    self._quarantine = canary.name
                    log.critical(
                        "QUARANTINED: the canary %r, which must be refused, was accepted: %s", canary.name, said
                    )
                    return
            if not self._accepts(said := finding(true, messages)):
                raise NoFinding(f"a true statement is not proved here: {said}")
            self._next_canaries = time.monotonic() + self.settings.canary_seconds

    def _accepts(self, said: Finding) -> bool:
        return said.status == "ok" and set(said.axioms) <= self.settings.axioms

    def _judge(self, record: Record, proof: str, said: Finding) -> Judgement:
        if said.status.startswith("record_"):
            return Judgement("error", "malformed_record", f"{said.status}: {said.detail}")
        if said.status != "ok":
            if said.status not in _FAILS:
                return Judgement("error", "no_finding", f"unknown status {said.status!r:.60}")
            reason = "heartbeats" if any(sign in said.detail for sign in _TOO_EXPENSIVE) else _FAILS[said.status]
            return Judgement("fail", reason, said.detail)
        if foreign := sorted(set(said.axioms) - self.settings.axioms):
            return Judgement("fail", "axioms", ", ".join(foreign))
        if trouble := self._replay(record, proof):
            return trouble
        return Judgement("pass", "proved", ", ".join(said.axioms), " ".join(proof.split()))

    def _replay(self, record: Record, proof: str) -> Judgement | None:
        """Run the external checker on the first proof of a statement; None if it agrees or need not be run."""
        if not self.settings.replay:
            return None
        key = hashlib.sha256("\0".join((record.header, record.statement)).encode()).hexdigest()
        if key in self._replayed:
            return None
        with tempfile.TemporaryDirectory(prefix="sieve-replay-") as directory:
            path = Path(directory) / "Proof.lean"
            path.write_text(f"{record.header}\n{record.head} by{proof}\n", encoding="utf-8")
            try:
                done = subprocess.run(
                    [*self.settings.replay, str(path)],
                    cwd=self.settings.project,
                    capture_output=True,
                    timeout=self.settings.replay_seconds,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                return Judgement("error", "replay_trouble", str(error)[:500])
        said = (done.stdout + done.stderr)[-500:].decode("utf-8", "replace")
        if done.returncode == 1:
            log.critical("the external checker rejects a proof of %s that Lean accepted: %s", record.name, said)
            return Judgement("error", "replay_disagrees", said)
        if done.returncode != 0:
            return Judgement("error", "replay_trouble", f"exit code {done.returncode}: {said}")
        if len(self._replayed) >= _REPLAYED:
            self._replayed.clear()
        self._replayed.add(key)
        return None

    def _assemble(self, record: Record, proof: str) -> Check:
        settings = self.settings
        return assemble(
            record.header, record.name, record.head, proof, library=settings.library, heartbeats=settings.heartbeats
        )

    def _plain(self, statement: str, proof: str, *, kernel: bool = False) -> Check:
        """The check of a canary, in an environment that all of them share."""
        return assemble(
            self.settings.canary_header.rstrip() + "\n" + CONTEXT,
            "SieveCanary",
            f"theorem SieveCanary : {statement} :=",
            proof,
            library=self.settings.library,
            heartbeats=self.settings.heartbeats,
            kernel=kernel,
        )

    def _refuse_all(self) -> Judgement:
        return Judgement(
            "error",
            "quarantined",
            f"the canary {self._quarantine!r} was accepted; see the log, repair the installation, restart",
        )


def _fingerprint(settings: LeanSettings) -> str:
    """A hash of everything that a verdict depends on besides record and answer; part of the version, so that verdicts
    of different installations have different cache keys."""
    depends = {"backend", "project", "lean", "repl", "url", "environment", "heartbeats", "library"}
    said: dict[str, Any] = settings.model_dump(mode="json", include=depends)
    said["axioms"] = sorted(settings.axioms)
    toolchain = settings.project / "lean-toolchain" if settings.project is not None else None
    if toolchain is not None and toolchain.is_file():
        said["toolchain"] = toolchain.read_text(encoding="utf-8", errors="replace").strip()
    return hashlib.sha256((json.dumps(said, sort_keys=True) + checker()).encode()).hexdigest()[:12]


def open_backend(settings: LeanSettings) -> Backend:
    """The back end that the settings name. Raises ConfinementUnavailable where programs cannot be confined."""
    # Only the chosen back end is imported, since each needs different packages.
    match settings.backend:
        case "repl":
            from verifier.builtin.lean.repl import ReplBackend

            return ReplBackend(settings)
        case "kimina":
            from verifier.builtin.lean.kimina import KiminaBackend

            return KiminaBackend(settings)
        case "command":
            from verifier.builtin.lean.command import CommandBackend

            return CommandBackend(settings)
