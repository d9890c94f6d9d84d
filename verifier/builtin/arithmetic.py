"""The verifier `arithmetic`: expressions that must use each given number once and equal a target (Countdown).

Record: `{"numbers": [int, …], "target": int}`. The answer is the whole text, an infix expression:

    expression = term { ("+" | "-") term }
    term       = factor { ("*" | "/") factor }
    factor     = number | "(" expression ")"

Numbers are ASCII digits without leading zeros; ASCII white space between tokens is ignored. There is no unary sign, no
power, no concatenation. Division is exact; dividing by zero fails. Everything is bounded before it is computed: length,
nesting, digits, and (through "each given number once") the size of the rationals. Text is never evaluated by Python.

Canonical form. Two right answers are the same answer iff one becomes the other by: white space and redundant
parentheses; x+y = y+x, (x+y)+z = x+(y+z), and likewise for *; x−y = x+(−y) with −(x±y) = −x∓y; x/y = x·(1/y) with
1/(x·y) = (1/x)/y and 1/(x/y) = y/x. So a sum is two multisets of terms (added, subtracted) and a product two multisets
of factors (multiplied, divided); equal numbers are interchangeable. No rule depends on a value: x*1, x+0, x*(y+z) and
(x−y)*(z−w) are not the same answers as x, x, x*y+x*z and (y−x)*(w−z).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from verifier.builtin.failed import Failed
from verifier.protocol import Judgement

MAX_LENGTH = 4096
"""The most characters of an answer."""
MAX_DEPTH = 64
"""The most parentheses open at once."""
MAX_NUMBERS = 32
MAX_NUMBER = 10**9
MAX_TARGET = 10**15

_TOKEN = re.compile(r"[ \t\r\n]*(?:([0-9]+)|([-+*/()]))")
_SPACE = " \t\r\n"
_MAX_DIGITS = len(str(MAX_NUMBER))
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


@dataclass(frozen=True, slots=True)
class Operation:
    """An inner node of the expression tree; `operator` is one of + - * /."""

    operator: str
    left: Expression
    right: Expression


Expression = int | Operation
Ratio = tuple[int, int]
"""(numerator, denominator), denominator ≠ 0, not reduced."""


class Arithmetic:
    """The verifier `arithmetic`; the module's docstring defines right answers and their canonical form."""

    name = "arithmetic"
    version = "1"
    reasons = frozenset(
        {"correct", "empty", "too_long", "bad_character", "syntax", "too_deep"}
        | {"wrong_numbers", "division_by_zero", "wrong_value", "malformed_record"}
    )

    def judge(self, record: Mapping[str, Any], answer: str) -> Judgement:
        """Judge one expression: pass with its canonical form, fail, or error/malformed_record. Never raises."""
        try:
            numbers, target = _read(record)
        except ValueError as error:
            return Judgement("error", "malformed_record", str(error))
        try:
            expression, used = parse(answer)
            if used != numbers:
                raise Failed("wrong_numbers", f"uses {used}, given {numbers}")
            numerator, denominator = value(expression)
            if numerator != target * denominator:
                raise Failed("wrong_value", f"not {target}")
        except Failed as failed:
            return Judgement("fail", failed.reason, failed.detail)
        return Judgement("pass", "correct", "", canonical(expression))


def parse(text: str) -> tuple[Expression, list[int]]:
    """The expression tree of `text` and its numbers, sorted; at most MAX_NUMBERS of them.

    Raises Failed: empty, too_long, bad_character, syntax, too_deep, wrong_numbers (more or longer ones than a record
    can have).
    """
    if len(text) > MAX_LENGTH:
        raise Failed("too_long", f"{len(text)} characters, at most {MAX_LENGTH}")
    tokens = _tokens(text)
    if not tokens:
        raise Failed("empty")
    used = sorted(token for token in tokens if isinstance(token, int))
    if len(used) > MAX_NUMBERS:
        # The functions on the tree are recursive; with at most MAX_NUMBERS leaves it is at most that deep.
        raise Failed("wrong_numbers", f"{len(used)} numbers, at most {MAX_NUMBERS} can be given")
    # Operator precedence with explicit stacks: deep nesting uses memory bounded by the length, not the call stack.
    operands: list[Expression] = []
    operators: list[str] = []
    depth = 0
    operand_next = True
    for token in tokens:
        if isinstance(token, int):
            if not operand_next:
                raise Failed("syntax", "a number follows an operand")
            operands.append(token)
            operand_next = False
        elif token == "(":
            if not operand_next:
                raise Failed("syntax", "'(' follows an operand")
            depth += 1
            if depth > MAX_DEPTH:
                raise Failed("too_deep", f"more than {MAX_DEPTH} open parentheses")
            operators.append(token)
        elif operand_next:
            raise Failed("syntax", f"'{token}' where a number or '(' is needed")
        elif token == ")":
            while operators and operators[-1] != "(":
                _reduce(operands, operators)
            if not operators:
                raise Failed("syntax", "')' without '('")
            operators.pop()
            depth -= 1
        else:
            while operators and _PRECEDENCE.get(operators[-1], 0) >= _PRECEDENCE[token]:
                _reduce(operands, operators)
            operators.append(token)
            operand_next = True
    if operand_next:
        raise Failed("syntax", "ends where a number or '(' is needed")
    if depth:
        raise Failed("syntax", f"{depth} '(' without ')'")
    while operators:
        _reduce(operands, operators)
    return operands[0], used


def value(expression: Expression) -> Ratio:
    """The exact value, with each number at most once in numerator and denominator. Raises Failed division_by_zero."""
    if isinstance(expression, int):
        return expression, 1
    a, b = value(expression.left)
    c, d = value(expression.right)
    match expression.operator:
        case "+":
            return a * d + c * b, b * d
        case "-":
            return a * d - c * b, b * d
        case "*":
            return a * c, b * d
    if c == 0:
        raise Failed("division_by_zero")
    return a * d, b * c


def canonical(expression: Expression) -> str:
    """The canonical text of an expression whose value exists; a right answer wherever `expression` is one."""
    if isinstance(expression, int):
        return str(expression)
    if expression.operator in "+-":
        added: list[str] = []
        subtracted: list[str] = []
        _flatten(expression, "+-", added, subtracted)
        return _join("+", added) + "".join(f"-{term}" for term in sorted(subtracted, key=_order))
    multiplied: list[str] = []
    divided: list[str] = []
    _flatten(expression, "*/", multiplied, divided)
    return _join("*", multiplied) + "".join(f"/{factor}" for factor in sorted(divided, key=_order))


def _read(record: Mapping[str, Any]) -> tuple[list[int], int]:
    """The given numbers, sorted, and the target. Raises ValueError that names what is wrong."""
    numbers, target = record.get("numbers"), record.get("target")
    if not isinstance(numbers, list | tuple) or not 1 <= len(numbers) <= MAX_NUMBERS:
        raise ValueError(f"record.numbers must be a list of 1 to {MAX_NUMBERS} integers")
    for number in numbers:
        if type(number) is not int or not 0 <= number <= MAX_NUMBER:
            raise ValueError(
                f"record.numbers holds {number!r:.40}: only integers from 0 to {MAX_NUMBER} can be written"
            )
    if type(target) is not int or abs(target) > MAX_TARGET:
        raise ValueError(f"record.target is {target!r:.40}: it must be an integer of magnitude at most {MAX_TARGET}")
    return sorted(numbers), target


def _tokens(text: str) -> list[int | str]:
    tokens: list[int | str] = []
    at = 0
    end = len(text.rstrip(_SPACE))
    while at < end:
        found = _TOKEN.match(text, at)
        if found is None:
            raise Failed("bad_character", f"{text[at:].lstrip(_SPACE)[:1]!a} is not part of an expression")
        digits, sign = found.groups()
        if digits is None:
            tokens.append(sign)
        elif len(digits) > 1 and digits[0] == "0":
            raise Failed("syntax", "a number with leading zeros")
        elif len(digits) > _MAX_DIGITS:
            raise Failed("wrong_numbers", f"a number of {len(digits)} digits")
        else:
            tokens.append(int(digits))
        at = found.end()
    return tokens


def _reduce(operands: list[Expression], operators: list[str]) -> None:
    right = operands.pop()
    operands[-1] = Operation(operators.pop(), operands[-1], right)


def _flatten(expression: Expression, pair: str, kept: list[str], inverted: list[str]) -> None:
    """Collect the operands of a chain of `pair` ("+-" or "*/"): those that count as they are, and as inverses."""
    if isinstance(expression, Operation) and expression.operator in pair:
        _flatten(expression.left, pair, kept, inverted)
        if expression.operator == pair[0]:
            _flatten(expression.right, pair, kept, inverted)
        else:
            _flatten(expression.right, pair, inverted, kept)
        return
    text = canonical(expression)
    # Only a sum inside a product needs parentheses, since a product inside a sum binds tighter.
    kept.append(f"({text})" if pair == "*/" and isinstance(expression, Operation) else text)


def _order(text: str) -> tuple[int, str]:
    return len(text), text


def _join(sign: str, texts: list[str]) -> str:
    return sign.join(sorted(texts, key=_order))
