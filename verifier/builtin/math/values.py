r"""The values that final answers are read into, and what they are as sets of real numbers. Data without I/O.

An expression is a nested list for worker.py: `["+", a, b]`, `["*", a, b]`, `["/", a, b]`, `["^", a, b]`, `["neg", a]`,
`["q", "3/2"]`, `["c", "pi"]`, `["s", "x"]`, `["f", "sin", a]`, `["root", n, a]`, `["fact", a]`, `["log", base, a]`,
`["binom", n, k]`, `["abs", a]`, `["deg", a]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

Expression = list[Any]
Shape = Any
"""One of the classes below."""


@dataclass(frozen=True)
class Scalar:
    """An expression with its unit. `number`: its exact value where it is a written-out number, else None."""

    tree: Expression
    unit: str = ""
    number: Fraction | None = None
    decimal: bool = False
    """Whether a decimal point is written in it."""
    operation: bool = False
    """Whether something is left to compute."""


@dataclass(frozen=True)
class Based:
    """A numeral with its base: `1011_2`. Its digits are compared, not its value."""

    digits: str
    base: int


@dataclass(frozen=True)
class Tuple:
    """Ordered members in round, square or angle brackets; may be an interval when there are two."""

    brackets: str
    members: tuple[Shape, ...]
    point: bool = False
    """Whether the record declares that it is no interval."""


@dataclass(frozen=True)
class Set:
    """Members without order: `\\{1, 2\\}`, `1, 2`, `x = 1 or x = 2`, `\\pm 2`."""

    members: tuple[Shape, ...]
    braces: bool = False


@dataclass(frozen=True)
class Interval:
    """`low` to `high`; `closed`: whether each end belongs to it. An infinite end is ["c", "inf"] or its negative."""

    low: Expression
    high: Expression
    closed: tuple[bool, bool]


@dataclass(frozen=True)
class Region:
    """A union of intervals and single points, on the real line."""

    parts: tuple[Shape, ...]


@dataclass(frozen=True)
class Relation:
    """`sides[0] ops[0] sides[1] ops[1] …`."""

    sides: tuple[Shape, ...]
    ops: tuple[str, ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of scalars; `kind` is "" or "det"."""

    rows: tuple[tuple[Shape, ...], ...]
    kind: str = ""


@dataclass(frozen=True)
class Cases:
    """Values with their conditions, without order."""

    rows: tuple[tuple[Shape, ...], ...]


@dataclass(frozen=True)
class Ratio:
    """`a : b : c`."""

    members: tuple[Shape, ...]


def named(shape: Shape) -> str | None:
    """The name that a relation `name = value` gives to its value; None for anything else."""
    if isinstance(shape, Relation) and shape.ops == ("=",) and isinstance(shape.sides[0], Scalar):
        tree = shape.sides[0].tree
        if tree[0] == "s":
            return str(tree[1])
    return None


def value_of(shape: Shape) -> Shape:
    """The value of `name = value`."""
    return shape.sides[1]


INFINITY: Expression = ["c", "inf"]
REALS = Interval(["neg", INFINITY], INFINITY, (False, False))


def without(points: list[Shape]) -> Region:
    """All reals but these points, which are in order."""
    ends: list[Expression] = [["neg", INFINITY], *(point.tree for point in points), INFINITY]
    return Region(tuple(Interval(low, high, (False, False)) for low, high in pairwise(ends)))


def as_set(shape: Shape) -> Region | None:
    """A tuple of two as an interval, a set as points; None for what is no set of reals."""
    if isinstance(shape, Region):
        return shape
    if isinstance(shape, Tuple) and len(shape.members) == 2 and set(shape.brackets) <= set("()[]"):
        low, high = shape.members
        if isinstance(low, Scalar) and isinstance(high, Scalar):
            closed = shape.brackets[0] == "[", shape.brackets[1] == "]"
            return Region((Interval(low.tree, high.tree, closed),))
    if isinstance(shape, Set) and all(isinstance(member, Scalar) for member in shape.members):
        return Region(tuple(Interval(member.tree, member.tree, (True, True)) for member in shape.members))
    return None


def as_region(shape: Shape) -> Region | None:
    """`shape` as a set of reals, relations of one unknown included; None for anything else."""
    return region_of(shape) if isinstance(shape, Relation) else as_set(shape)


def region_of(shape: Shape) -> Region | None:
    """`x > 3`, `1 < x <= 3`, `x != 2` as a set of reals; None for other relations."""
    if isinstance(shape, Region):
        return shape
    if not isinstance(shape, Relation) or not all(isinstance(side, Scalar) and not side.unit for side in shape.sides):
        return None
    trees = [side.tree for side in shape.sides]
    ops: list[str] = list(shape.ops)
    unknown = [at for at, tree in enumerate(trees) if tree[0] == "s"]
    if len(unknown) != 1 or any(
        symbols(tree) & symbols(trees[unknown[0]]) for at, tree in enumerate(trees) if at != unknown[0]
    ):
        return None
    at = unknown[0]
    if ops == ["!="]:
        return without([shape.sides[1 - at]])
    if not all(op in ("<", "<=", ">", ">=") for op in ops) or len({op[0] for op in ops}) != 1:
        return None
    if ops[0][0] == ">":
        trees, ops, at = trees[::-1], [op.replace(">", "<") for op in ops[::-1]], len(trees) - 1 - at
    if len(trees) == 2:
        if at == 0:
            return Region((Interval(["neg", INFINITY], trees[1], (False, ops[0] == "<=")),))
        return Region((Interval(trees[0], INFINITY, (ops[0] == "<=", False)),))
    if len(trees) == 3 and at == 1:
        return Region((Interval(trees[0], trees[2], (ops[0] == "<=", ops[1] == "<=")),))
    return None


def symbols(tree: Any) -> frozenset[str]:
    """Names of the unknowns in an expression."""
    if tree[0] == "s":
        return frozenset((tree[1],))
    return frozenset().union(*(symbols(part) for part in tree[1:] if isinstance(part, list)))
