"""Attacks on the verifier `arithmetic`: each fails with its own reason, and an honest answer to the record passes.

They use Unicode that looks like digits and signs, code, numbers that were not given, resource bombs and bad grammar.
"""

from __future__ import annotations

import time

import pytest

from verifier.builtin.arithmetic import MAX_DEPTH, MAX_LENGTH, Arithmetic

ARITHMETIC = Arithmetic()
RECORD = {"numbers": (2, 3, 7), "target": 20}
HONEST = ("(3+7)*2", "( 3 + 7 ) * 2", "2*(7+3)\n")
ATTACKS = [
    ("", "empty"),
    ("   \n\t ", "empty"),
    (" " * 1_000_000, "too_long"),
    ("1" * 1_000_000, "too_long"),
    ("(" * 1_000_000, "too_long"),
    ("(" * MAX_LENGTH, "too_deep"),
    ("20", "wrong_numbers"),
    ("3+7*2", "wrong_value"),
    ("(3+7)*2*1", "wrong_numbers"),
    ("(3+7)*2+7-7", "wrong_numbers"),
    ("3+7", "wrong_numbers"),
    ("2*2*(2+3)", "wrong_numbers"),
    ("23-7", "wrong_numbers"),  # concatenation of 2 and 3
    ("2 3 - 7", "syntax"),
    ("(3+7) 2", "syntax"),
    ("(3+7)(2)", "syntax"),
    ("2(3+7)", "syntax"),
    ("(3+7)*2=20", "bad_character"),
    ("20=(3+7)*2", "bad_character"),
    ("(3+7)*2 # right", "bad_character"),
    ("(3+7)*2;", "bad_character"),
    ("(3+7)*2\0", "bad_character"),
    ("(3+7)*2\x0b", "bad_character"),
    ("(3+7)\u00a0*2", "bad_character"),
    ("(3+7)\u200b*2", "bad_character"),
    ("\ufeff(3+7)*2", "bad_character"),
    ("(3+7)×2", "bad_character"),
    ("(3+7)∗2", "bad_character"),
    ("(3＋7)*2", "bad_character"),
    ("（3+7）*2", "bad_character"),
    ("(３+7)*2", "bad_character"),  # fullwidth digit, int() would take it
    ("(٣+٧)*٢", "bad_character"),  # Arabic-Indic digits
    ("(𝟑+7)*2", "bad_character"),  # mathematical bold digit
    ("(3+7)*²", "bad_character"),
    ("(③+7)*2", "bad_character"),
    ("\u202e2*(7+3)", "bad_character"),  # right-to-left override
    ("(3+7)*2\ud800", "bad_character"),
    ("-2*(3+7)", "syntax"),
    ("+2*(3+7)", "syntax"),
    ("2*(-3+7)", "syntax"),
    ("2--3+7", "syntax"),
    ("2**3+7", "syntax"),
    ("9**9**9**9", "syntax"),
    ("9^9^9^9", "bad_character"),
    ("7//3*2", "syntax"),
    ("7%3*2", "bad_character"),
    ("NaN", "bad_character"),
    ("inf", "bad_character"),
    ("1e1*2", "bad_character"),
    ("2.0*(3+7)", "bad_character"),
    ("2_0", "bad_character"),
    ("0x14", "bad_character"),
    ("02*(3+7)", "syntax"),
    ("2,(3+7)", "bad_character"),
    ("[3+7]*2", "bad_character"),
    ("__import__('os').system('true')", "bad_character"),
    ("print(20)", "bad_character"),
    ("2/(3-3)", "wrong_numbers"),
    ("2*(3+7", "syntax"),
    ("2*3+7)", "syntax"),
    (")2*3+7(", "syntax"),
    ("()", "syntax"),
    ("2*()3+7", "syntax"),
    ("*", "syntax"),
    ("2*", "syntax"),
    ("1" * 4000, "wrong_numbers"),
    ("10000000000000000000000*2", "wrong_numbers"),
    ("1+" * 2000 + "1", "wrong_numbers"),
    ("(" * (MAX_DEPTH + 1) + "2" + ")" * (MAX_DEPTH + 1) + "*(3+7)", "too_deep"),
    ("(2*" * 30 + "1" + ")" * 30, "wrong_numbers"),
    ("The answer is (3+7)*2", "bad_character"),
    ("\\boxed{(3+7)*2}", "bad_character"),
    ("(3+7)*2</s>", "bad_character"),
    ("(3+7)*2\n(3+7)*2", "syntax"),
]


@pytest.mark.parametrize(("answer", "reason"), ATTACKS, ids=lambda value: ascii(value)[:40])
def test_an_attack_fails_and_an_honest_answer_passes(answer: str, reason: str) -> None:
    begin = time.monotonic()
    said = ARITHMETIC.judge(RECORD, answer)
    assert (said.outcome, said.reason) == ("fail", reason)
    assert time.monotonic() - begin < 1.0
    for honest in HONEST:
        assert ARITHMETIC.judge(RECORD, honest).outcome == "pass"


@pytest.mark.parametrize(
    ("answer", "numbers", "target", "honest"),
    [
        ("2/(3-3)", (2, 3, 3), 0, "2*(3-3)"),
        ("0/0", (0, 0), 0, "0+0"),
        ("(2-2)*(1/(3-3))", (1, 2, 2, 3, 3), 0, "1*(2-2)*(3-3)"),
    ],
)
def test_dividing_by_zero_is_never_the_target(answer: str, numbers: tuple[int, ...], target: int, honest: str) -> None:
    record = {"numbers": numbers, "target": target}
    said = ARITHMETIC.judge(record, answer)
    assert (said.outcome, said.reason) == ("fail", "division_by_zero")
    assert ARITHMETIC.judge(record, honest).outcome == "pass"


def test_there_are_enough_attacks() -> None:
    assert len(ATTACKS) >= 60
