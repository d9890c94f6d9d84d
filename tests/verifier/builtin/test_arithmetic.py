"""The verifier `arithmetic`: right answers and their canonical form. Attacks on it are in tests/attacks."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.builtin.arithmetic import (
    MAX_DEPTH,
    MAX_LENGTH,
    MAX_NUMBER,
    MAX_NUMBERS,
    Arithmetic,
    Expression,
    Operation,
    canonical,
    parse,
    value,
)
from verifier.builtin.failed import Failed

ARITHMETIC = Arithmetic()


def judge(answer: str, numbers: list[int] | tuple[int, ...] = (2, 3, 7), target: int = 20) -> tuple[str, str]:
    found = ARITHMETIC.judge({"numbers": numbers, "target": target}, answer)
    assert found.reason in ARITHMETIC.reasons
    assert bool(found.answer) == (found.outcome == "pass")
    return found.outcome, found.reason


@pytest.mark.parametrize(
    ("answer", "numbers", "target"),
    [
        ("(3+7)*2", [2, 3, 7], 20),
        ("( 3 + 7 ) * 2", [2, 3, 7], 20),
        ("2*(7+3)\n", [2, 3, 7], 20),
        ("\t2 *\r\n(7 + 3)", [2, 3, 7], 20),
        ("((((2))*((3)+(7))))", [2, 3, 7], 20),
        ("5", [5], 5),
        ("0", [0], 0),
        ("8/3/2*6", [2, 3, 6, 8], 8),
        ("8/(3-8/3)", [3, 3, 8, 8], 24),
        ("8/(3-(8/3))", [3, 3, 8, 8], 24),
        ("1-5", [1, 5], -4),
        ("2-3-4", [2, 3, 4], -5),
        ("24/4/2", [2, 4, 24], 3),
        ("1/3+2/3", [1, 2, 3, 3], 1),
        ("7-7+7*7", [7, 7, 7, 7], 49),
        ("(1-2)*(3-4)", [1, 2, 3, 4], 1),
        ("1/(2-3)", [1, 2, 3], -1),
        ("0/5+3", [0, 3, 5], 3),
        ("999999999+1000000000", [10**9, 10**9 - 1], 1_999_999_999),
    ],
)
def test_an_honest_answer_passes(answer: str, numbers: list[int], target: int) -> None:
    assert judge(answer, numbers, target) == ("pass", "correct")


@pytest.mark.parametrize(
    ("answer", "numbers", "target", "reason"),
    [
        ("2/(3-3)", [2, 3, 3], 0, "division_by_zero"),
        ("0/(3-3)", [0, 3, 3], 0, "division_by_zero"),
        ("0/0", [0, 0], 0, "division_by_zero"),
        ("(2-2)*(1/(3-3))", [1, 2, 2, 3, 3], 0, "division_by_zero"),
        ("7/3*3", [3, 3, 7], 8, "wrong_value"),
        ("1/3", [1, 3], 0, "wrong_value"),  # no floor division, no rounding
        ("1/1000000000", [1, 10**9], 0, "wrong_value"),
        ("8/(3-8/3)", [3, 8], 24, "wrong_numbers"),
        ("3+3", [3], 6, "wrong_numbers"),
        ("3", [3, 3], 3, "wrong_numbers"),
    ],
)
def test_exact_values_and_multisets_decide(answer: str, numbers: list[int], target: int, reason: str) -> None:
    assert judge(answer, numbers, target) == ("fail", reason)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"numbers": [1, 2]},
        {"target": 3},
        {"numbers": [], "target": 3},
        {"numbers": "12", "target": 3},
        {"numbers": [1, 2.0], "target": 3},
        {"numbers": [True, 2], "target": 3},
        {"numbers": [1, -2], "target": 3},
        {"numbers": [1, "2"], "target": 3},
        {"numbers": [1, None], "target": 3},
        {"numbers": [1, MAX_NUMBER + 1], "target": 3},
        {"numbers": [1] * (MAX_NUMBERS + 1), "target": 3},
        {"numbers": {1: 2}, "target": 3},
        {"numbers": [1, 2], "target": "3"},
        {"numbers": [1, 2], "target": 3.0},
        {"numbers": [1, 2], "target": True},
        {"numbers": [1, 2], "target": None},
        {"numbers": [1, 2], "target": 10**400},
    ],
)
def test_a_malformed_record_is_an_error_whatever_the_answer(record: dict[str, object]) -> None:
    for answer in ("1+2", "", "(" * 10_000):
        found = ARITHMETIC.judge(record, answer)
        assert (found.outcome, found.reason) == ("error", "malformed_record")


def test_the_largest_allowed_problem_is_judged_at_once() -> None:
    numbers = [MAX_NUMBER] * MAX_NUMBERS
    assert judge("*".join(map(str, numbers)), numbers, 7) == ("fail", "wrong_value")
    assert judge("/".join(map(str, numbers)), numbers, 7) == ("fail", "wrong_value")
    deep = "(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH
    assert judge(deep, [1], 1) == ("pass", "correct")


# --- against an independent oracle: random trees, printed with random parentheses and spaces, evaluated with Fraction


def trees(max_leaves: int = 8, zero: bool = True) -> st.SearchStrategy[Expression]:
    leaves = st.integers(0 if zero else 1, 13)
    return st.recursive(
        leaves, lambda inner: st.builds(Operation, st.sampled_from("+-*/"), inner, inner), max_leaves=max_leaves
    )


def leaves(tree: Expression) -> list[int]:
    return [tree] if isinstance(tree, int) else leaves(tree.left) + leaves(tree.right)


def oracle(tree: Expression) -> Fraction | None:
    """The value computed with Fraction; None after a division by zero."""
    if isinstance(tree, int):
        return Fraction(tree)
    left, right = oracle(tree.left), oracle(tree.right)
    if left is None or right is None or (tree.operator == "/" and right == 0):
        return None
    return {
        "+": lambda: left + right,
        "-": lambda: left - right,
        "*": lambda: left * right,
        "/": lambda: left / right,
    }[tree.operator]()


def show(tree: Expression, chance: random.Random) -> str:
    """A text of the tree with random redundant parentheses and spaces."""

    def space() -> str:
        return chance.choice(["", "", " ", "  ", "\n"])

    def write(node: Expression, binding: int) -> str:
        if isinstance(node, int):
            text, own = str(node), 3
        else:
            own = 1 if node.operator in "+-" else 2
            text = write(node.left, own) + space() + node.operator + space() + write(node.right, own + 1)
        if own < binding or chance.random() < 0.2:
            text = f"({space()}{text}{space()})"
        return text

    return space() + write(tree, 0) + space()


@settings(max_examples=400, deadline=None)
@given(trees(), st.randoms(use_true_random=False), st.integers(-3, 3))
@pytest.mark.slow
def test_a_verdict_equals_the_oracle(tree: Expression, chance: random.Random, off: int) -> None:
    text, expected = show(tree, chance), oracle(tree)
    numbers = leaves(tree)
    chance.shuffle(numbers)
    target = off if expected is None or expected.denominator != 1 else int(expected) + off
    outcome, reason = judge(text, numbers, target)
    if expected is None:
        assert (outcome, reason) == ("fail", "division_by_zero")
    else:
        assert (outcome == "pass") == (expected == target), (text, expected, target)


@settings(max_examples=200, deadline=None)
@given(trees(), st.randoms(use_true_random=False))
def test_text_is_read_with_the_usual_precedence(tree: Expression, chance: random.Random) -> None:
    read, used = parse(show(tree, chance))
    assert read == tree
    assert used == sorted(leaves(tree))


# --- the same answer


def rewrite(tree: Expression, chance: random.Random) -> Expression:
    """The tree after one random application of the documented rules at every node; its value is unchanged."""
    if isinstance(tree, int):
        return tree
    a, b, sign = rewrite(tree.left, chance), rewrite(tree.right, chance), tree.operator
    plus, minus = ("+", "-") if sign in "+-" else ("*", "/")
    options: list[Expression] = [Operation(sign, a, b)]
    if sign == plus:
        options.append(Operation(plus, b, a))
    if isinstance(a, Operation) and a.operator == plus and sign == plus:  # (x+y)+b = x+(y+b)
        options.append(Operation(plus, a.left, Operation(plus, a.right, b)))
    if isinstance(a, Operation) and a.operator == plus and sign == minus:  # (x+y)-b = x+(y-b)
        options.append(Operation(plus, a.left, Operation(minus, a.right, b)))
    if isinstance(a, Operation) and a.operator == minus and sign == plus:  # (x-y)+b = x-(y-b)  and  (x+b)-y
        options.append(Operation(minus, Operation(plus, a.left, b), a.right))
        if sign == "+":
            options.append(Operation(minus, a.left, Operation(minus, a.right, b)))
    if isinstance(a, Operation) and a.operator == minus and sign == minus:  # (x-y)-b = x-(y+b)
        options.append(Operation(minus, a.left, Operation(plus, a.right, b)))
    if isinstance(b, Operation) and b.operator == minus and sign == minus:  # a-(x-y) = (a+y)-x
        options.append(Operation(minus, Operation(plus, a, b.right), b.left))
    return chance.choice(options)


def same(text: str) -> str:
    return canonical(parse(text)[0])


@settings(max_examples=400, deadline=None)
@given(trees(zero=False), st.randoms(use_true_random=False))
@pytest.mark.slow
def test_rewriting_by_the_documented_rules_gives_the_same_answer(tree: Expression, chance: random.Random) -> None:
    if oracle(tree) is None:
        return
    other = tree
    for _ in range(4):
        other = rewrite(other, chance)
    assert oracle(other) == oracle(tree)
    assert canonical(other) == canonical(tree)
    assert same(show(other, chance)) == canonical(tree)


@settings(max_examples=300, deadline=None)
@given(trees())
def test_a_canonical_answer_is_itself_right_and_canonical(tree: Expression) -> None:
    expected = oracle(tree)
    if expected is None:
        return
    text = canonical(tree)
    again, used = parse(text)
    numerator, denominator = value(again)
    assert Fraction(numerator, denominator) == expected
    assert used == sorted(leaves(tree))
    assert canonical(again) == text
    assert not any(c.isspace() for c in text)


def signature(tree: Expression) -> object:
    """An independent implementation of the documented equivalence: nested frozen multisets instead of sorted text."""

    def collect(node: Expression, pair: str, sign: int, into: list[tuple[int, object]]) -> None:
        if isinstance(node, Operation) and node.operator in pair:
            collect(node.left, pair, sign, into)
            collect(node.right, pair, sign if node.operator == pair[0] else -sign, into)
        else:
            into.append((sign, signature(node)))

    if isinstance(tree, int):
        return tree
    pair = "+-" if tree.operator in "+-" else "*/"
    parts: list[tuple[int, object]] = []
    collect(tree, pair, 1, parts)
    return pair, frozenset((part, parts.count(part)) for part in parts)


@settings(max_examples=400, deadline=None)
@given(trees(max_leaves=4, zero=False), trees(max_leaves=4, zero=False))
@pytest.mark.slow
def test_canonical_texts_are_equal_exactly_for_the_same_answer(one: Expression, other: Expression) -> None:
    assert (canonical(one) == canonical(other)) == (signature(one) == signature(other))


def test_every_tree_over_three_small_numbers_is_classed_as_documented() -> None:
    every: list[Expression] = []
    for a, b, c in [(1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1)]:
        for p in "+-*/":
            for q in "+-*/":
                every += [Operation(p, Operation(q, a, b), c), Operation(p, a, Operation(q, b, c))]
    by_text: dict[str, set[object]] = {}
    for tree in every:
        by_text.setdefault(canonical(tree), set()).add(signature(tree))
    assert all(len(found) == 1 for found in by_text.values())
    assert len(by_text) == len({signature(tree) for tree in every})


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("1+2+3", "3+(2+1)", True),
        ("2*(3+7)", "( 7 + 3 ) * 2", True),
        ("5-2-3", "5-3-2", True),
        ("5-(2+3)", "5-2-3", True),
        ("5-(2-3)", "5+3-2", True),
        ("8/2/4", "8/(4*2)", True),
        ("8/(2/4)", "4*8/2", True),
        ("6*4/2", "6/2*4", True),
        ("1+2*3", "3*2+1", True),
        ("3-2", "2-3", False),
        ("6*1", "6/1", False),
        ("2*(3+4)", "2*3+2*4", False),
        ("(5-3)*(7-4)", "(3-5)*(4-7)", False),
        ("2+2", "2*2", False),
        ("1*2+3", "1*(2+3)", False),
    ],
)
def test_what_counts_as_the_same_answer(one: str, other: str, equal: bool) -> None:
    assert (same(one) == same(other)) is equal


# --- hostile text


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(
        st.text(max_size=200), st.text("0123456789+-*/() \n", max_size=200), st.text("()", max_size=MAX_LENGTH + 10)
    )
)
def test_no_text_makes_judging_raise(text: str) -> None:
    outcome, reason = judge(text)
    assert outcome in {"pass", "fail"}
    if reason in {"empty", "too_long", "bad_character", "syntax", "too_deep"}:
        with pytest.raises(Failed, match=reason):
            parse(text)
