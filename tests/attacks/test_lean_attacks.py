"""Attacks on the Lean verifier, each of which must be `fail` or `error`, and honest proofs that must pass.

Checks that reach Lean are run by an installed one (SIEVE_TEST_LEAN, or `lean` on PATH), started once; without one, they
are answered from the recording in tests/verifier/builtin/lean/exchanges/. Which of the two was used is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.verifier.builtin.lean.lean_rig import ask, canary, checks, judge, source, unscreened
from verifier.builtin.lean.assembly import Finding
from verifier.builtin.lean.canaries import CANARIES, TRUE_STATEMENT, Canary
from verifier.builtin.lean.suite import ATTACKS, HONEST, KERNEL_ALONE, UNSCREENED, Case
from verifier.builtin.lean.verifier import Lean

ALLOWED = {"propext", "Classical.choice", "Quot.sound"}
REFUSED_EARLY = [case for case in ATTACKS if not case.asks_lean]
FOR_LEAN = [case for case in ATTACKS if case.asks_lean]


@pytest.fixture(scope="module")
def verifier() -> Iterator[Lean]:
    made = Lean(
        backend="kimina", url="http://127.0.0.1:9"
    )  # nothing listens there: an answer that gets this far is an error
    yield made
    made.close()


@pytest.fixture(scope="module")
def findings(request: pytest.FixtureRequest) -> dict[str, Finding]:
    """Lean's findings on all cases that reach it, by id."""
    plain = [(f"honest: {id}", record, answer) for id, record, answer in HONEST]
    plain += [(case.id, case.record, case.answer) for case in FOR_LEAN]
    asked = checks(plain)
    names = [id for id, _, _ in plain]
    for id, (record, proof) in UNSCREENED.items():
        asked.append(unscreened(record, proof))
        names.append(f"unscreened: {id}")
    for id, (record, proof) in KERNEL_ALONE.items():
        asked.append(unscreened(record, proof, kernel=True))
        names.append(f"kernel: {id}")
    for one in (*CANARIES, Canary("honest", *TRUE_STATEMENT)):
        asked.append(canary(one))
        names.append(f"canary: {one.name}")
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n[lean attacks: {source()}]", file=sys.stderr)
    order = sorted(range(len(asked)), key=lambda place: (len(asked[place].prelude), asked[place].prelude))
    answers = ask([asked[place] for place in order])
    return {names[place]: answer for place, answer in zip(order, answers, strict=True)}


@pytest.mark.parametrize("case", REFUSED_EARLY, ids=[case.id for case in REFUSED_EARLY])
def test_refused_before_lean_sees_it(case: Case, verifier: Lean) -> None:
    said = verifier.judge(case.record, case.answer)
    assert said.outcome == "fail", said
    assert said.reason in case.reasons, said


@pytest.mark.parametrize("case", FOR_LEAN, ids=[case.id for case in FOR_LEAN])
def test_refused_by_lean(case: Case, verifier: Lean, findings: dict[str, Finding]) -> None:
    outcome, _, reason = judge(verifier, case.record, case.answer, findings[case.id]).partition("/")
    assert outcome == "fail", findings[case.id]
    assert reason in case.reasons, findings[case.id]


@pytest.mark.parametrize("id", UNSCREENED)
def test_the_checker_refuses_attacks_without_screening(id: str, findings: dict[str, Finding]) -> None:
    said = findings[f"unscreened: {id}"]
    assert said.status != "ok" or not set(said.axioms) <= ALLOWED, said
    assert not said.status.startswith("record"), said


@pytest.mark.parametrize("id", KERNEL_ALONE)
def test_the_kernel_alone_refuses_what_code_or_options_let_through(id: str, findings: dict[str, Finding]) -> None:
    said = findings[f"kernel: {id}"]
    assert said.status != "ok" or not set(said.axioms) <= ALLOWED, said
    assert not said.status.startswith("record"), said


def test_no_canary_is_proved_and_the_true_statement_is(findings: dict[str, Finding]) -> None:
    for one in CANARIES:
        said = findings[f"canary: {one.name}"]
        assert said.status != "ok" or not set(said.axioms) <= ALLOWED, said
    assert findings["canary: honest"].status == "ok" and set(findings["canary: honest"].axioms) <= ALLOWED


@pytest.mark.parametrize(("id", "record", "answer"), HONEST, ids=[id for id, _, _ in HONEST])
def test_an_honest_proof_passes(
    id: str, record: dict[str, str], answer: str, verifier: Lean, findings: dict[str, Finding]
) -> None:
    assert judge(verifier, record, answer, findings[f"honest: {id}"]) == "pass/proved", findings[f"honest: {id}"]
