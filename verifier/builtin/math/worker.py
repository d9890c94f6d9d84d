r"""The program that compares two expressions numerically, in a process of its own that may be killed at any moment.

One JSON object a line in: `{"ask": "equal", "gold": tree, "answer": tree, "seconds": float}`, or `"ask": "relation"`
with `[op, left, right]` for both; out come two lines: `{"gold": bool}` as soon as the record's part is seen to have a
value (so that whoever waits knows whose fault a death is; nothing follows a false), then `{"equal": bool}` or
`{"undecided": true}`. Trees are those of values.py.

Arithmetic is ball arithmetic at rising precision (FLINT's acb): a ball that excludes 0 proves that two values differ.
That they are the same is taken from a difference smaller than 2^−b, where b grows with the number of operations and
with the size of every intermediate value. (Richardson's uniformity conjecture: a closed form that is not 0 is not that
near to 0. A tiny term has a large exponent, which raises b.) Expressions with unknowns are compared at rational points
of both signs, which decides rational functions (Schwartz–Zippel) and tells branches of roots and logarithms apart.

A CPU timer kills this process when one answer has used its `seconds` of computing: the kernel does it, in the middle
of any C loop, and waiting for a busy machine does not count. Started as a file: imports nothing of the project.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, Literal

from flint import acb, arb, ctx, fmpq, fmpz

Tree = list[Any]
Point = dict[str, fmpq]
Sign = Literal["zero", "nonzero", "undefined", "undecided"]

FIRST_BITS = 128
MOST_BITS = 1 << 17
"""Precision beyond which a comparison stays undecided."""
UNDEFINED_BITS = 1 << 12
"""A value that is not finite at this precision has none: a division by a difference that is exactly 0, say."""
POINTS = 6


class Endless(ValueError):
    """Infinity inside an expression: only infinity itself can be compared."""


class Evaluation:
    """One expression at one point, at the working precision. `nodes` and `bits` bound how near to 0 it may come."""

    def __init__(self, point: Point) -> None:
        self.point, self.nodes, self.bits = point, 0, 0

    def __call__(self, tree: Tree) -> acb:
        self.nodes += 1
        value = self._value(tree)
        if value.is_finite() and not value.contains(0):
            mantissa, exponent = abs(value).mid().man_exp()
            self.bits += abs(int(exponent) + int(fmpz(mantissa).bit_length()))
        return value

    def _value(self, tree: Tree) -> acb:
        name, args = tree[0], tree[1:]
        if name == "q":
            top, _, bottom = args[0].partition("/")
            return acb(arb(fmpq(int(top), int(bottom or 1))))
        if name == "c":
            return self._constant(args[0])
        if name == "s":
            return acb(arb(self.point[args[0]]))
        if name == "f":
            return self._function(args[0], self(args[1]))
        if name == "^":
            return self._power(args[0], args[1])
        if name == "root":
            return self._root(args[0], args[1])
        if name == "fact":
            return self._factorial(args[0])
        values = [self(one) for one in args]
        if name == "+":
            return values[0] + values[1]
        if name == "*":
            return values[0] * values[1]
        if name == "/":
            return values[0] / values[1]
        if name == "neg":
            return -values[0]
        if name == "abs":
            return acb(abs(values[0]))
        if name == "deg":
            return values[0] * acb.pi() / 180
        if name == "log":
            return values[1].log() / values[0].log() if args[0] != ["c", "e"] else values[1].log()
        if name == "binom":
            n, k = values
            return (n + 1).gamma() * (k + 1).rgamma() * (n - k + 1).rgamma()
        raise ValueError(f"unknown operation {name!r}")

    @staticmethod
    def _constant(name: str) -> acb:
        if name == "pi":
            return acb.pi()
        if name == "e":
            return acb(1).exp()
        if name == "i":
            return acb(0, 1)
        raise Endless

    @staticmethod
    def _function(name: str, value: acb) -> acb:
        if name in ("floor", "ceil"):
            return value.real_floor() if name == "floor" else value.real_ceil()
        found: acb = getattr(value, name)()
        return found

    def _power(self, base: Tree, exponent: Tree) -> acb:
        value = self(base)
        whole = integer(exponent)
        if whole is not None:
            return value ** fmpz(whole)
        if base == ["c", "e"]:
            return self(exponent).exp()
        return value ** self(exponent)

    def _root(self, index: Tree, radicand: Tree) -> acb:
        value, n = self(radicand), integer(index)
        if n is None:
            return value ** (1 / self(index))
        if n == 2:
            return value.sqrt()
        if n % 2 and n > 0 and value.imag == 0:
            real = value.real
            if real < 0:
                return -acb((-real).root(n))
            if real > 0:
                return acb(real.root(n))
        return value ** acb(arb(fmpq(1, n))) if n else value / 0

    def _factorial(self, tree: Tree) -> acb:
        n = integer(tree)
        if n is not None and n >= 0:
            return acb(arb.fac_ui(n)) if hasattr(arb, "fac_ui") else acb(n + 1).gamma()
        return (self(tree) + 1).gamma()


def integer(tree: Tree) -> int | None:
    """The value of an integer's tree, signs included; None for anything else."""
    if tree[0] == "q" and "/" not in tree[1]:
        return int(tree[1])
    if tree[0] == "neg":
        inner = integer(tree[1])
        return None if inner is None else -inner
    return None


def unknowns(tree: Any) -> set[str]:
    if tree[0] == "s":
        return {tree[1]}
    return set().union(*(unknowns(part) for part in tree[1:] if isinstance(part, list)))


def point(names: list[str], place: int) -> Point:
    """Rational values of about 1, one point of a fixed sequence: all positive, all negative, mixed."""
    found: Point = {}
    for name in names:
        digest = int.from_bytes(hashlib.sha256(f"{place}/{name}".encode()).digest()[:6], "little")
        size = fmpq(400 + digest % 2003, 1009)
        negative = place in (2, 5) or (place in (3, 4) and digest >> 40 & 1)
        found[name] = -size if negative else size
    return found


def sign(compute: Callable[[], tuple[acb, int, int]]) -> Sign:
    """Whether a value is 0. `compute` gives it at the working precision, with its number of nodes and bits."""
    bits = FIRST_BITS
    while bits <= MOST_BITS:
        ctx.prec = bits
        value, nodes, size = compute()
        if not value.is_finite():
            if bits >= UNDEFINED_BITS:
                return "undefined"
            bits *= 4
            continue
        if not value.contains(0):
            return "nonzero"
        needed = 256 + 16 * nodes + 4 * size
        if value.is_zero() or abs(value).upper() < arb(2) ** -needed:
            return "zero"
        bits = max(2 * bits, needed + size + 64)
    return "undecided"


def difference(one: Tree, other: Tree, at: Point) -> Sign:
    def compute() -> tuple[acb, int, int]:
        left, right = Evaluation(at), Evaluation(at)
        value = left(one) - right(other)
        return value, left.nodes + right.nodes, left.bits + right.bits

    return sign(compute)


def defined(tree: Tree, names: list[str]) -> bool:
    """Whether an expression has a value, at one of the first points if it has unknowns."""
    if is_endless(tree):
        return True
    try:
        return any(defined_at(tree, point(names, place)) for place in range(2 if names else 1))
    except Endless:
        return False


def _alone(tree: Tree, at: Point) -> tuple[acb, int, int]:
    evaluation = Evaluation(at)
    value = evaluation(tree)
    return value, evaluation.nodes, evaluation.bits


def is_endless(tree: Tree) -> bool:
    return tree == ["c", "inf"] or (tree[0] == "neg" and tree[1] == ["c", "inf"])


def equal(gold: Tree, answer: Tree) -> bool | None:
    """Whether two expressions are the same; None where that stays undecided."""
    if is_endless(gold) or is_endless(answer):
        return gold == answer
    names = sorted(unknowns(gold) | unknowns(answer))
    same = 0
    for place in range(POINTS if names else 1):
        try:
            found = difference(gold, answer, point(names, place))
        except Endless:
            return False
        if found == "nonzero":
            return False
        if found == "undecided":
            return None
        if found == "undefined" and defined_at(gold, point(names, place)) != defined_at(answer, point(names, place)):
            return False
        same += found == "zero"
    return same >= (3 if names else 1)


def defined_at(tree: Tree, at: Point) -> bool:
    return sign(lambda: _alone(tree, at)) != "undefined"


def same_relation(gold: list[Any], answer: list[Any]) -> bool | None:
    """Whether two relations say the same: the differences of their sides are in one constant ratio (positive for <)."""
    (op, *mine), (other_op, *theirs) = _ascending(gold), _ascending(answer)
    if op != other_op:
        return False
    names = sorted(set().union(*(unknowns(side) for side in (*mine, *theirs))))
    if not names:
        return None
    first = [["+", side[0], ["neg", side[1]]] for side in (mine, theirs)]
    start = point(names, 0)
    ctx.prec = 256
    if difference(mine[0], mine[1], start) != "nonzero" or difference(theirs[0], theirs[1], start) != "nonzero":
        return False
    ratio = Evaluation(start)(first[0]) / Evaluation(start)(first[1])
    if op in ("<", "<=") and not (ratio.imag.contains(0) and ratio.real > 0):
        return False
    for place in range(1, POINTS):
        at = point(names, place)

        def compute(at: Point = at) -> tuple[acb, int, int]:
            runs = [Evaluation(where) for where in (at, at, start, start)]
            here = runs[0](first[0]), runs[1](first[1])
            there = runs[2](first[0]), runs[3](first[1])
            value = here[0] * there[1] - here[1] * there[0]
            return value, sum(run.nodes for run in runs), sum(run.bits for run in runs)

        found = sign(compute)
        if found != "zero":
            return False if found == "nonzero" else None
    return True


def _ascending(relation: list[Any]) -> list[Any]:
    op, left, right = relation
    return [op.replace(">", "<"), right, left] if op[0] == ">" else [op, left, right]


def main() -> None:
    memory = int(sys.argv[1])
    sys.setrecursionlimit(10_000)  # a level of an expression takes two frames
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints is not an answer

    def say(**body: bool) -> None:
        out.write(json.dumps(body) + "\n")
        out.flush()

    say(ready=True)
    for line in sys.stdin:
        job = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, float(job["seconds"]))
        gold, answer = job["gold"], job["answer"]
        if job["ask"] == "equal":
            sound = defined(gold, sorted(unknowns(gold)))
        else:
            sound = any(unknowns(side) for side in gold[1:])
        say(gold=sound)
        if sound:
            found = equal(gold, answer) if job["ask"] == "equal" else same_relation(gold, answer)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if sound:
            say(**({"undecided": True} if found is None else {"equal": found}))


if __name__ == "__main__":
    main()
