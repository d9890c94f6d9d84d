r"""Whether two values of grammar.py mean the same, member by member. Numbers are compared here, exactly; expressions
are handed to `Oracle`. Whatever the answer has beyond the record's value (a unit, a base, brackets) must fit it too.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal

from verifier.builtin.failed import Failed
from verifier.builtin.math.units import is_known
from verifier.builtin.math.values import (
    Based,
    Cases,
    Expression,
    Interval,
    Matrix,
    Ratio,
    Region,
    Relation,
    Scalar,
    Set,
    Shape,
    Tuple,
    as_region,
    named,
    value_of,
)

Oracle = Callable[[Literal["equal", "relation"], Any, Any], bool]
"""Asked about two expressions, or two relations `[op, left, right]`; raises Failed where it cannot tell."""
MAX_MEMBERS = 30


def compare(gold: Shape, given: Shape, ask: Oracle) -> None:
    """Return where `given` means the same as `gold`. Raises Failed with the reason where it does not."""
    _members(*_without_name(gold, given), ask)


def _members(gold: Shape, given: Shape, ask: Oracle) -> None:
    """As `compare`, inside of something else: there a name belongs to the value."""
    if isinstance(gold, Scalar):
        _scalar(gold, given, ask)
    elif isinstance(gold, Based):
        if given != gold:
            raise Failed("wrong", "another numeral, or another base")
    elif isinstance(gold, Tuple):
        _tuple(gold, given, ask)
    elif isinstance(gold, Set):
        _set(gold, given, ask)
    elif isinstance(gold, Region):
        _region(gold, as_region(given), ask)
    elif isinstance(gold, Relation):
        _relation(gold, given, ask)
    elif isinstance(gold, Matrix):
        if not isinstance(given, Matrix) or given.kind != gold.kind:
            raise Failed("wrong", "a matrix is asked for")
        if [len(row) for row in given.rows] != [len(row) for row in gold.rows]:
            raise Failed("wrong", f"a matrix of {_size(given)}, not {_size(gold)}")
        for row, other in zip(gold.rows, given.rows, strict=True):
            _all(row, other, ask)
    elif isinstance(gold, Ratio):
        if not isinstance(given, Ratio):
            raise Failed("wrong", "a ratio or a time is asked for")
        _all(gold.members, given.members, ask)
    elif isinstance(gold, Cases):
        if not isinstance(given, Cases):
            raise Failed("wrong", "cases are asked for")
        _match(gold.rows, given.rows, lambda one, other: _all(one, other, ask))
    elif isinstance(gold, Interval):
        if not isinstance(given, Interval) or given.closed != gold.closed:
            raise Failed("wrong", "another interval")
        if not (_same(gold.low, given.low, ask) and _same(gold.high, given.high, ask)):
            raise Failed("wrong", "another end of an interval")
    else:
        raise Failed("wrong", "nothing to compare with")


def _size(matrix: Matrix) -> str:
    return f"{len(matrix.rows)} × {len(matrix.rows[0])}"


def _without_name(gold: Shape, given: Shape) -> tuple[Shape, Shape]:
    """Both without a leading `x =`; another name than the record's is wrong, a claim (3 = 5) is malformed."""
    mine, other = named(gold), named(given)
    if other is not None and (mine is not None or not isinstance(gold, Relation)):
        if mine is not None and mine != other:
            raise Failed("wrong", f"{other} is not {mine}")
        return (value_of(gold) if mine is not None else gold), value_of(given)
    if mine is not None and not isinstance(given, Relation):
        return value_of(gold), given
    if isinstance(given, Relation) and "=" in given.ops and not isinstance(gold, Relation | Region | Cases):
        raise Failed("malformed", "one value, or name = value; this claims more")
    return gold, given


def _scalar(gold: Scalar, given: Shape, ask: Oracle) -> None:
    if isinstance(given, Set) and len(given.members) == 1 and not given.braces:
        given = given.members[0]
    if isinstance(given, Matrix) and given.kind == "det":
        raise Failed("unevaluated", "a determinant is not a value")
    if not isinstance(given, Scalar):
        raise Failed("wrong", "one value is asked for")
    if gold.number is not None:
        if given.number is None and gold.unit and given.tree[:1] == ["*"] and given.tree[2] == ["s", gold.unit]:
            given = Scalar(given.tree[1], gold.unit, _literal(given.tree[1]))  # `5 m`, read as a product
        if given.number is None:
            if given.operation and _computes(given.tree):
                raise Failed("unevaluated", "a computation; a number is asked for")
            raise Failed("wrong", "not a number")
        _unit(gold.unit, given.unit)
        if given.number != gold.number:
            raise Failed("wrong", f"{given.number} is not {gold.number}")
        return
    _unit(gold.unit, given.unit)
    if not _same(gold.tree, given.tree, ask):
        if given.decimal and not gold.decimal:
            raise Failed("inexact", "decimals where the record is exact")
        raise Failed("wrong", "another value")


def _literal(tree: Expression) -> Fraction | None:
    return Fraction(tree[1]) if tree[0] == "q" else None


def _computes(tree: Expression) -> bool:
    """Whether a number is computed: nothing unknown in it, and something to do."""
    return tree[0] not in ("q", "c", "s")


def _unit(gold: str, given: str) -> None:
    """A unit that the record has not is accepted where it is a known one; one that it has may be left out."""
    if given == gold or (not given and gold != "%") or (not gold and is_known(given)):
        return
    raise Failed("unit", f"{given or 'no unit'!r} where the record has {gold or 'no unit'!r}")


def _same(gold: Expression, given: Expression, ask: Oracle) -> bool:
    return gold == given or ask("equal", gold, given)


def _all(golds: tuple[Shape, ...], members: tuple[Shape, ...], ask: Oracle) -> None:
    if len(golds) != len(members):
        raise Failed("wrong", f"{len(members)} members, not {len(golds)}")
    if len(golds) > MAX_MEMBERS:
        raise Failed("too_expensive", f"{len(golds)} members, at most {MAX_MEMBERS}")
    for one, other in zip(golds, members, strict=True):
        _members(one, other, ask)


def _tuple(gold: Tuple, given: Shape, ask: Oracle) -> None:
    if isinstance(given, Relation | Region) and not gold.point:
        _region(as_region(gold), as_region(given), ask)
        return
    if not isinstance(given, Tuple) or given.brackets != gold.brackets:
        raise Failed("wrong", f"{getattr(given, 'brackets', 'no')} brackets where the record has {gold.brackets}")
    _all(gold.members, given.members, ask)


def _set(gold: Set, given: Shape, ask: Oracle) -> None:
    if isinstance(given, Scalar) and len(gold.members) == 1:
        given = Set((given,))
    if isinstance(given, Region) and as_region(gold) is not None:
        _region(as_region(gold), given, ask)
        return
    if not isinstance(given, Set):
        raise Failed("wrong", "a set is asked for")
    _match(gold.members, given.members, lambda one, other: _members(one, other, ask))


def _match(golds: tuple[Any, ...], members: tuple[Any, ...], same: Callable[[Any, Any], None]) -> None:
    """Each of `golds` for one of `members`, in any order. Equality is transitive, so the first that fits is right."""
    if len(golds) != len(members):
        raise Failed("wrong", f"{len(members)} members, not {len(golds)}")
    if len(golds) > MAX_MEMBERS:
        raise Failed("too_expensive", f"{len(golds)} members, at most {MAX_MEMBERS}")
    left = list(members)
    for one in golds:
        refused: Failed | None = None
        for place, other in enumerate(left):
            try:
                same(one, other)
            except Failed as error:
                if error.reason in ("too_expensive", "undecided"):
                    raise
                refused = error if refused is None or error.reason != "wrong" else refused
            else:
                del left[place]
                break
        else:
            raise Failed("wrong" if refused is None else refused.reason, "a member that the record does not have")


def _region(gold: Region | None, given: Region | None, ask: Oracle) -> None:
    if gold is None or given is None:
        raise Failed("wrong", "a set of numbers is asked for")
    _match(gold.parts, given.parts, lambda one, other: _members(one, other, ask))


def _relation(gold: Relation, given: Shape, ask: Oracle) -> None:
    region = as_region(gold)
    if region is not None and as_region(given) is not None:
        _region(region, as_region(given), ask)
        return
    if not isinstance(given, Relation):
        raise Failed("wrong", "an equation or inequality is asked for")
    if len(gold.ops) != len(given.ops):
        raise Failed("wrong", "another chain of relations")
    if not all(isinstance(side, Scalar) and not side.unit for side in (*gold.sides, *given.sides)):
        if gold.ops != given.ops:
            raise Failed("wrong", "another relation")
        _all(gold.sides, given.sides, ask)
        return
    if len(gold.ops) > 1:
        if gold.ops != given.ops:
            raise Failed("wrong", "another chain of relations")
        _all(gold.sides, given.sides, ask)
        return
    if not ask("relation", _plain(gold), _plain(given)):
        raise Failed("wrong", "another relation")


def _plain(relation: Relation) -> list[Any]:
    return [relation.ops[0], *(side.tree for side in relation.sides)]
