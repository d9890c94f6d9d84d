"""The self-test of a Lean installation: honest proofs, attacks, canaries, and the axioms below imported theorems.

`sieve doctor` runs it on the Lean that is configured, through the back end that is configured. It needs nothing but the
core library, and one run of Lean for about twenty checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from verifier.builtin.failed import Failed
from verifier.builtin.lean.assembly import AXIOMS, Check, Finding, Message, NoFinding, assemble, finding, several
from verifier.builtin.lean.backends import Backend, BackendTrouble
from verifier.builtin.lean.extraction import read_record, tactics
from verifier.builtin.lean.screening import screen
from verifier.builtin.lean.settings import LeanSettings
from verifier.builtin.lean.suite import ATTACKS, HONEST, KERNEL_ALONE, UNSCREENED

BATCH = 20
"""Checks in one run of Lean."""
CLASSICAL = next((record, answer) for id, record, answer in HONEST if id == "classical logic")
"""A proof that rests on all three axioms, through an imported theorem."""

Line = tuple[bool, str]
"""Whether it is as it should be, and what was found."""


def selftest(settings: LeanSettings, backend: Backend) -> Iterator[Line]:
    """One line for each part of the self-test, and one for each case that is not as it should be."""
    yield _version(settings, backend)
    yield _axioms(settings, backend)
    honest = {id: _honest(settings, record, answer) for id, record, answer in HONEST}
    yield from _judged("honest proofs", "proved", honest, settings, backend, accepted=True)
    screened = {}
    for case in ATTACKS:
        try:
            screened[case.id] = _check(settings, case.record, screen(tactics(case.answer, read_record(case.record))))
        except Failed:
            continue
    yield from _judged("attacks past screening", "refused", screened, settings, backend, accepted=False)
    unscreened = {id: _check(settings, record, proof) for id, (record, proof) in UNSCREENED.items()}
    yield from _judged("attacks without screening", "refused", unscreened, settings, backend, accepted=False)
    alone = {id: _check(settings, record, proof, kernel=True) for id, (record, proof) in KERNEL_ALONE.items()}
    yield from _judged("attacks on the kernel alone", "refused", alone, settings, backend, accepted=False)


def _version(settings: LeanSettings, backend: Backend) -> Line:
    """Lean's version, as it says itself."""
    asked = replace(_honest(settings, *CLASSICAL), command="#eval Lean.versionString")
    try:
        said = backend.run(asked, settings.start_seconds)
    except BackendTrouble as trouble:
        return False, f"Lean does not answer: {trouble}"
    return True, f"Lean says that it is {' '.join(message.text for message in said)[:200] or 'nothing'}"


def _axioms(settings: LeanSettings, backend: Backend) -> Line:
    """Whether the proofs of imported theorems are there to be walked."""
    check = _honest(settings, *CLASSICAL)
    try:
        said = finding(check, backend.run(check, settings.seconds))
    except (BackendTrouble, NoFinding) as error:
        return False, f"library = {settings.library}: {error}"
    if said.status == "ok" and (set(said.axioms) == AXIOMS or settings.library == "trust"):
        return (
            True,
            f"library = {settings.library}: below Classical.em are {', '.join(sorted(set(said.axioms))) or 'none'}",
        )
    found = ", ".join(said.axioms) or f"{said.status} {said.detail}"
    return False, (
        f"library = {settings.library}: below Classical.em are {found} instead of {', '.join(sorted(AXIOMS))}; build "
        "the library with its proofs, or set library = trust if that is impossible"
    )


def _judged(
    what: str, word: str, checks: Mapping[str, Check], settings: LeanSettings, backend: Backend, *, accepted: bool
) -> Iterator[Line]:
    wrong: list[Line] = []
    for id, said in _findings(checks, settings, backend):
        if isinstance(said, Finding):
            passed = said.status == "ok" and set(said.axioms) <= settings.axioms
            if passed != accepted or said.status.startswith("record"):
                wrong.append(
                    (False, f"{what}: {id!r} is {said.status} {said.detail[:200]} {' '.join(said.axioms)}".rstrip())
                )
        else:
            wrong.append((False, f"{what}: {id!r} has no finding: {said}"))
    yield not wrong, f"{what}: {len(checks) - len(wrong)} of {len(checks)} {word}"
    yield from wrong


def _findings(
    checks: Mapping[str, Check], settings: LeanSettings, backend: Backend
) -> Iterator[tuple[str, Finding | str]]:
    """Each finding, or why there is none. A batch that fails as a whole is tried again one check at a time."""
    by_prelude: dict[str, list[tuple[str, Check]]] = {}
    for id, check in checks.items():
        by_prelude.setdefault(check.prelude, []).append((id, check))
    for group in by_prelude.values():
        for start in range(0, len(group), BATCH):
            batch = group[start : start + BATCH]
            try:
                messages = backend.run(
                    several([check for _, check in batch]), settings.seconds + settings.start_seconds
                )
            except BackendTrouble:
                yield from ((id, _alone(check, settings, backend)) for id, check in batch)
            else:
                yield from ((id, _read(check, messages)) for id, check in batch)


def _alone(check: Check, settings: LeanSettings, backend: Backend) -> Finding | str:
    try:
        return _read(check, backend.run(check, settings.seconds))
    except BackendTrouble as trouble:
        return str(trouble)


def _read(check: Check, messages: Iterable[Message]) -> Finding | str:
    try:
        return finding(check, list(messages))
    except NoFinding as nothing:
        return str(nothing)


def _honest(settings: LeanSettings, record: Mapping[str, Any], answer: str) -> Check:
    return _check(settings, record, screen(tactics(answer, read_record(record))))


def _check(settings: LeanSettings, record: Mapping[str, Any], proof: str, *, kernel: bool = False) -> Check:
    trusted = read_record(record)
    return assemble(
        trusted.header,
        trusted.name,
        trusted.head,
        proof,
        library=settings.library,
        heartbeats=settings.heartbeats,
        kernel=kernel,
    )
