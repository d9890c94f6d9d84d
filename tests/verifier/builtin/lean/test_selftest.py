"""The self-test that `sieve doctor` runs, against stand-ins that answer with what a real Lean said."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.verifier.builtin.lean.lean_peers import EXCHANGES
from verifier.builtin.lean.assembly import checker
from verifier.builtin.lean.doctor import trial
from verifier.builtin.lean.screening import OPTIONS
from verifier.builtin.lean.settings import LeanSettings

HERE = Path(__file__).parent


def settings(*words: str) -> LeanSettings:
    command = (sys.executable, str(HERE / "lean_peers.py"), str(EXCHANGES), *words)
    readable = [str(path) for path in (HERE.parents[3], sys.prefix, sys.base_prefix)]
    return LeanSettings.model_validate(
        {"backend": "repl", "repl": command, "library": "trust", "sandbox": {"readable": readable}}
    )


@pytest.mark.slow
def test_a_sound_installation_passes_every_part() -> None:
    lines = list(trial(settings()))
    assert [text for fine, text in lines if not fine] == []
    said = "\n".join(text for _, text in lines)
    for part in ("4.28", "Classical.em", "honest proofs", "without screening", "kernel alone"):
        assert part in said


@pytest.mark.slow
def test_an_installation_that_accepts_anything_is_told_case_by_case() -> None:
    wrong = [text for fine, text in trial(settings("valid")) if not fine]
    assert any("attacks on the kernel alone: 0 of" in text for text in wrong)
    assert any("'skipKernelTC' is ok" in text for text in wrong)


def test_the_checker_and_screening_know_the_same_options() -> None:
    table = checker().split("def options", 1)[1].split("]", 1)[0]
    assert {name: int(limit) or None for name, limit in re.findall(r"\(`([\w.]+), (\d+)\)", table)} == OPTIONS
