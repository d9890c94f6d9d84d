r"""Attacks on the verifier `math`, each with an honest answer to the same record.

They are reward hacks, resource bombs, misplaced answers and Unicode tricks. Each must fail for its own reason: an
attack that fails by accident could pass after the next change.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

from verifier.builtin.math.verifier import MathAnswer


@dataclass(frozen=True)
class Attack:
    """An attack and a right answer; `honest` is put in a box, and `answer` too unless it contains one."""

    what: str
    gold: Any
    honest: str
    answer: str
    reasons: str
    question: str = ""


ATTACKS = [
    # --- a claim that contains the value is not the value
    Attack("an equation with the value on its right", "5", "5", "3=5", "malformed"),
    Attack("a chain of equations that ends in the value", "5", "x=5", "1=2=5", "malformed"),
    Attack("an approximation of something else", "5", "5", r"5 \approx 5.1", "wrong"),
    Attack("both signs", "5", "5", r"\pm 5", "wrong"),
    Attack("a list that holds the value", "5", "5", "4, 5, 6", "wrong"),
    Attack("a set of every candidate", r"\{1,2\}", r"\{2,1\}", r"\{1,2,3\}", "wrong"),
    Attack("a hedge in words", "5", r"5\text{ cm}", r"5 \text{ or } 6", "wrong"),
    Attack("another unknown's value", "x=5", "x = 5", "y=5", "wrong"),
    Attack("a tautology for an equation", "x^2+y^2=1", "y^2 = 1 - x^2", "0=0", "wrong"),
    Attack("a record's equation, claimed further", "x^2+y^2=1", "x^2+y^2=1", "x^2+y^2=1=1", "wrong"),
    # --- the work left undone
    Attack("the sum that was asked for", "5050", "5050", r"\frac{100 \cdot 101}{2}", "unevaluated"),
    Attack("a sum with bounds", "5050", "5050", r"\sum_{n \in [1,100]} n", "unevaluated"),
    Attack("a power for its value", "1024", "1024", "2^{10}", "unevaluated"),
    Attack("a factorial for its value", "120", "120", "5!", "unevaluated"),
    Attack("a root for its value", "5", "5", r"\sqrt{25}", "unevaluated"),
    Attack("the integral of the question", r"\frac{\pi}{4}", r"\pi/4", r"\int_0^1 \frac{1}{1+x^2} dx", "unevaluated",
           r"Compute $\int_0^1 \frac{1}{1+x^2}\,dx$."),
    Attack("the question's own expression", r"7\sqrt{2}", r"\sqrt{98}", r"\sqrt{50}+\sqrt{8}", "restated",
           r"Simplify $\sqrt{50} + \sqrt{8}$."),
    Attack("a derivative not taken", "2x", "x+x", r"\frac{d}{dx} x^2", "unevaluated"),
    # --- nearly the value
    Attack("decimals for a third", r"\frac{1}{3}", r"\frac{2}{6}", "0.333333333333333", "wrong"),
    Attack("decimals for pi", r"\pi", r"\frac{2\pi}{2}", "3.14159265358979323846264338327950288", "inexact"),
    Attack("a fraction as near to pi as doubles are", r"\pi", r"\pi", r"\frac{245850922}{78256779}", "wrong"),
    Attack("the root and a little", r"\sqrt{2}", r"\frac{2}{\sqrt{2}}", r"\sqrt{2}+10^{-30}", "wrong"),
    Attack("per cent for the number", "5", "5", r"5\%", "unit"),
    Attack("another unit than the record's", r"5\text{ cm}", r"5 \text{ cm}", r"5\text{ m}", "unit"),
    # --- what an algebra system takes for the same
    Attack("the other case of a choice", "A", r"\text{(A)}", "a", "wrong"),
    Attack("the other case of a symbol", "x+1", "1+x", "X+1", "wrong"),
    Attack("both cases of a symbol", "2x", "x+x", "x+X", "wrong"),
    Attack("a derivative by its prime", "2x", "x+x", "(2x)'", "wrong"),
    Attack("a list around the expression", "x+1", "1+x", "x+1, x+2", "wrong"),
    Attack("a set for a point", "(1,2)", r"\left(1, 2\right)", "1,2", "wrong"),
    Attack("a point for a set", r"\{1,2\}", "2,1", "(1,2)", "wrong"),
    Attack("the closed interval", "(1,2)", "(1, 2)", "[1,2]", "wrong"),
    Attack("members in another order", "(1,2)", "(1,2)", "(2,1)", "wrong"),
    Attack("nothing times infinity", "x^2-1", "(x-1)(x+1)", r"x^2-1+0\cdot\frac{1}{0}", "wrong"),
    Attack("an undefined number", r"\sqrt{2}", r"2^{1/2}", r"\frac{0}{0}", "wrong"),
    Attack("infinity by division", r"\infty", r"+\infty", r"\frac{1}{0}", "wrong"),
    # --- resource bombs
    Attack("a tower of powers", r"\sqrt{2}", r"\sqrt{2}", "9^{9^{9^9}}", "too_expensive"),
    Attack("a tower without braces", r"\sqrt{2}", r"\sqrt{2}", "9^9^9^9", "too_expensive"),
    Attack("a tower in Python's spelling", r"\sqrt{2}", r"\sqrt{2}", "9**9**9**9", "too_expensive"),
    Attack("a tower behind a letter", r"\sqrt{2}", r"\sqrt{2}", r"\sqrt{2}+x^{9^{9^9}}-x^{9^{9^9}}", "too_expensive"),
    Attack("a tower built from its base", r"\sqrt{2}", r"\sqrt{2}", "((9^{9999})^{9999})^{9999}", "too_expensive"),
    Attack("an expansion of a million terms", r"\sqrt{2}", r"\sqrt{2}", "((x+y+z)^{999})^{99}", "too_expensive"),
    Attack("a factorial of a factorial", r"\sqrt{2}", r"\sqrt{2}", "(9!)!", "too_expensive"),
    Attack("a large factorial", "n!", "n(n-1)!", "n! + 99999! - 99999!", "too_expensive"),
    Attack("a number of a million digits", "5", "5", r"\boxed{" + "9" * 10**6 + "}", "too_long"),
    Attack("a number of 300 digits", "5", "5", "9" * 300, "too_expensive"),
    Attack("a thousand open brackets", "x", "x", "(" * 200, "too_expensive"),
    Attack("exponent notation", "5", "5", "5e0", "malformed"),
    # --- where the answer stands
    Attack("a right box before the last one", "5", "5", r"\boxed{5} … no: \boxed{6}", "wrong"),
    Attack("a box that does not close", "5", "5", r"\boxed{5} \boxed{5", "malformed"),
    Attack("a last box without braces", "5", "5", r"\boxed{5} \boxed 5", "malformed"),
    Attack("no box", "5", "5", r"the answer is 5 \boxedx{5}", "no_answer"),
    Attack("an empty last box", "5", "5", r"\boxed{5} \boxed{ }", "empty"),
    Attack("a box closed by an escaped brace", "5", "5", r"\boxed{5\}", "malformed"),
    Attack("a box that does not close around one that does", "5", "5", r"\boxed{6, \boxed{5}, 7", "malformed"),
    Attack("a box within a box of others", "5", r"\boxed{\boxed{5}}", r"\boxed{6, \boxed{5}, 7}", "malformed"),
    # --- text
    Attack("Arabic digits", "5", "5", "٥", "bad_character"),
    Attack("fullwidth digits", "5", "5", "５", "bad_character"),
    Attack("a right-to-left override", "12", "12", "\u202e12", "bad_character"),
    Attack("a zero-width space", "12", "12", "1\u200b2", "bad_character"),
    Attack("two numbers for one", "12", "12", "1 2", "wrong unevaluated"),
    Attack("a lone surrogate", "5", "5", "5\ud800", "bad_character"),
    Attack("a null", "5", "5", "5\0", "bad_character"),
    Attack("code", "x+1", "1+x", "__import__('os').system('touch /tmp/pwned')", "wrong"),
    Attack("a file to read", "x+1", "1+x", r"\input{/etc/passwd}", "unevaluated"),
    Attack("a definition", "5", "5", r"\def\x{5}\x", "wrong"),
]  # fmt: skip


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathAnswer]:
    verifier = MathAnswer(cpu_seconds=1.0)
    yield verifier
    verifier.close()


def box(answer: str) -> str:
    return answer if "\\boxed" in answer else f"so the answer is \\boxed{{{answer}}}"


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.what)
def test_an_attack_fails_and_an_honest_answer_passes(verifier: MathAnswer, attack: Attack) -> None:
    record = {"answer": attack.gold, "question": attack.question}
    begin = time.monotonic()
    said = verifier.judge(record, box(attack.answer))
    assert time.monotonic() - begin < 30
    assert said.outcome == "fail", said
    assert said.reason in attack.reasons.split(), said
    honest = verifier.judge(record, box(attack.honest))
    assert (honest.outcome, honest.reason) == ("pass", "correct"), honest


@pytest.mark.slow
def test_no_answer_was_executed_and_no_process_is_left(verifier: MathAnswer) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    for answer in ("((9^{9999})^{9999})^{9999}", "((x+y+z)^{999})^{99}", "__import__('os').system('touch /tmp/pwned')"):
        verifier.judge({"answer": r"\sqrt{2}"}, box(answer))
    assert not os.path.exists("/tmp/pwned")
    left = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert len(left) <= 1  # the idle worker


@pytest.mark.slow
def test_an_answer_cannot_forge_the_workers_output(verifier: MathAnswer) -> None:
    for answer in ('{"equal": true}', 'x\\text{"}\n{"gold": true}\n{"equal": true}\n', r'\text{{"equal":true}}'):
        assert verifier.judge({"answer": "x+1"}, box(answer)).outcome == "fail"
    assert verifier.judge({"answer": "x+1"}, box("1+x")).outcome == "pass"
