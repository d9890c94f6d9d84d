"""Answers of reasoning-gym's tasks: each passes itself or is refused when the record is read, and no other passes.

The package brings a hundred generators of tasks with answers in many notations (numbers, words, lists, expressions,
times). Answers of more than one line are left out: a box holds one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from verifier.builtin.math.verifier import MathAnswer

gym = pytest.importorskip("reasoning_gym", reason="needs the extra `tasks`, one of whose packages needs a C compiler")

ITEMS, SEED = 12, 11


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathAnswer]:
    verifier = MathAnswer()
    yield verifier
    verifier.close()


@pytest.fixture(scope="module")
def answers() -> dict[str, list[str]]:
    """Task → its answers of one line, without repetitions."""
    found = {}
    for name in sorted(set(gym.factory.DATASETS) - {"composite"}):
        dataset = gym.create_dataset(name, size=ITEMS, seed=SEED)
        lines = dict.fromkeys(str(dataset[place]["answer"]) for place in range(ITEMS))
        found[name] = [line for line in lines if "\n" not in line]
    return found


def value(text: str) -> float | None:
    """The value of plain arithmetic, None for anything else."""
    if not re.fullmatch(r"[\d+\-*/() ]+", text):
        return None
    try:
        return float(eval(text, {"__builtins__": {}}))  # noqa: S307  digits and operators, checked above
    except (SyntaxError, TypeError, ZeroDivisionError):
        return None


@pytest.mark.slow
def test_an_answer_passes_itself_and_no_other_passes(verifier: MathAnswer, answers: dict[str, list[str]]) -> None:
    tried, refused = 0, []
    for task, lines in answers.items():
        for place, line in enumerate(lines):
            record = {"answer": line}
            try:
                verifier.check_record(record)
            except ValueError as error:
                refused.append((task, line, str(error)))
                continue
            tried += 1
            said = verifier.judge(record, rf"\boxed{{{line}}}")
            assert said.outcome == "pass", (task, line, said)
            other = lines[(place + 1) % len(lines)]
            if other != line and (value(line) is None or value(line) != value(other)):
                said = verifier.judge(record, rf"\boxed{{{other}}}")
                assert said.outcome == "fail", (task, line, other, said)
    assert tried > 700
    assert len(refused) < 10 and all("declare kind: text" in error for _, _, error in refused), refused
