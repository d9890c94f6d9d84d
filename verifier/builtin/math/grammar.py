r"""The grammar of final answers: from tokens to one typed value. Nothing is evaluated, and no token is passed over.

    value   relation | member ("," member)* | member ("or" member)*
    member  ( … ) | [ … ] | \\{ … \\} | matrix | interval ∪ … | a : b | expression unit

What this grammar does not know is Unreadable and can only be compared as text: a reader that skipped it would take two
different answers for one.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from verifier.builtin.math.expression import scalar
from verifier.builtin.math.literal import thousands, wraps
from verifier.builtin.math.spelling import Token, Unreadable
from verifier.builtin.math.values import (
    REALS,
    Based,
    Cases,
    Matrix,
    Ratio,
    Region,
    Relation,
    Scalar,
    Set,
    Shape,
    Tuple,
    as_set,
    named,
    region_of,
    value_of,
    without,
)

RELATIONS = {"=": "=", "<": "<", ">": ">", "le": "<=", "ge": ">=", "ne": "!=", "in": "in", "equiv": "==", "approx": "~"}
OPEN, CLOSE = {"(": ")", "[": "]", "\\{": "\\}", "langle": "rangle"}, {")", "]", "\\}", "rangle"}
_OPENING, _CLOSING = {*OPEN, "{", "begin", "lfloor", "lceil"}, {*CLOSE, "}", "end", "rfloor", "rceil"}
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
          "eleven": 11, "twelve": 12, "sixteen": 16}  # fmt: skip
MATRICES = {"pmatrix": "", "bmatrix": "", "matrix": "", "Bmatrix": "", "array": "", "smallmatrix": "", "vmatrix": "det",
            "cases": "cases"}  # fmt: skip


def read(found: list[Token]) -> Shape:
    """The typed value of an answer. Raises Unreadable."""
    if not found:
        raise Unreadable("nothing is left")
    return _value(found)


def _value(found: list[Token]) -> Shape:
    while len(found) > 2 and (found[0].text, found[-1].text) == ("{", "}") and wraps(found):
        found = found[1:-1]  # braces that only hold together what a font or colour is for
    for separators in (("or",), (";",), (",",)):
        members = _split(found, separators)
        if len(members) > 1:
            if separators == (",",):
                joined = thousands(found)
                if joined is not None:
                    found = joined
                    members = _split(found, separators)
                    if len(members) == 1:
                        break
            if members[-1] and members[-1][0].text == "and" and members[-1][0].kind in ("command", "word"):
                members[-1] = members[-1][1:]
            shapes = [_value(member) for member in members]
            if separators == ("or",) or all(
                isinstance(shape, Region | Relation) and region_of(shape) for shape in shapes
            ):
                regions = [region_of(shape) for shape in shapes]
                if all(region is not None for region in regions):
                    return Region(tuple(part for region in regions if region for part in region.parts))
            flat = [part for shape in shapes for part in (shape.members if isinstance(shape, Set) else (shape,))]
            return _unnamed_set(flat)
    members = _split(found, ("and",))
    if len(members) > 1:
        return _unnamed_set([_value(member) for member in members])
    return _relation(found)


def _unnamed_set(shapes: list[Shape]) -> Shape:
    """`x = 1, x = 2` is the set of 1 and 2; `x = 1, y = 2` stays a set of equations."""
    names = {named(shape) for shape in shapes}
    if len(names) == 1 and None not in names:
        shapes = [value_of(shape) for shape in shapes]
    first = named(shapes[0]) if shapes else None
    if first is not None and all(not isinstance(shape, Relation) for shape in shapes[1:]):
        shapes = [value_of(shapes[0]), *shapes[1:]]  # x = 1, 2
    return Set(tuple(shapes))


def _relation(found: list[Token]) -> Shape:
    sides: list[list[Token]] = []
    ops: list[str] = []
    start = depth = 0
    for at, token in enumerate(found):
        depth += _depth(token)
        name = token.text
        if depth == 0 and token.kind in ("command", "sign") and name in RELATIONS:
            op = RELATIONS[name]
            if ops and at == start and op == "=" and ops[-1] in "<>":  # <= as computer algebra writes it
                ops[-1] += "="
                start = at + 1
                continue
            sides.append(found[start:at])
            ops.append(op)
            start = at + 1
    if not ops:
        return _region_or_member(found)
    sides.append(found[start:])
    if any(op == "~" for op in ops):
        raise Unreadable("an approximation")
    if ops == ["in"]:
        shape = _region_or_member(sides[1])
        region = shape if isinstance(shape, Region) else as_set(shape)
        if region is None:
            raise Unreadable("membership in something that is no set of numbers")
        return region
    return Relation(tuple(_member(side) for side in sides), tuple(ops))


def _region_or_member(found: list[Token]) -> Shape:
    pieces = _split(found, ("cup",))
    minus = _split(found, ("setminus",))
    if len(minus) == 2:
        whole, gone = as_set(_region_or_member(minus[0])), _member(minus[1])
        if whole is None or not isinstance(gone, Set) or whole.parts != (REALS,):
            raise Unreadable("a difference of sets that is not all reals without points")
        points = [_number(member) for member in gone.members]
        if any(point is None for point in points) and len(points) != 1:
            raise Unreadable("points that cannot be put in order")
        return without(
            [member for _, member in sorted(zip(points, gone.members, strict=True), key=lambda p: p[0] or 0)]
        )
    if len(pieces) > 1:
        regions = [as_set(_member(piece)) for piece in pieces]
        if all(region is not None for region in regions):
            return Region(tuple(part for region in regions if region for part in region.parts))
        raise Unreadable("a union of things that are no sets of numbers")
    return _member(found)


def _number(shape: Shape) -> Fraction | None:
    return shape.number if isinstance(shape, Scalar) else None


def _member(found: list[Token]) -> Shape:
    """One member: something in brackets, a matrix, a ratio, or an expression with its unit."""
    if not found:
        raise Unreadable("an empty member")
    inner = _enclosed(found)
    if inner is not None:
        opening, closing, body = inner
        if any(token.space and before.text == "," for before, token in pairwise(body)):
            body = thousands(body) or body  # (1,000, 2,000): the commas without a space are inside numbers
        if opening == "\\{":
            bar = next((at for at, token in enumerate(body) if token.text in ("|", ":") and token.kind == "sign"), None)
            if bar is not None and all(token.kind != "number" for token in body[:bar]):
                return _value(body[bar + 1 :])  # {x | 1 < x < 3}
            if not body:
                return Set((), braces=True)
            return Set(tuple(_value(member) for member in _split(body, (",", ";"))), braces=True)
        members = _split(body, (",", ";"))
        if len(members) > 1:
            return Tuple(_bracket(opening) + _bracket(closing), tuple(_value(member) for member in members))
        if opening == "[" or opening == "langle":
            return Tuple(_bracket(opening) + _bracket(closing), (_value(body),) if body else ())
        if closing != ")":
            raise Unreadable("brackets that do not fit")
        if not any(token.kind in ("letter", "run") for token in body) and _matrix(body) is None:
            shape = _value(body)
            if not isinstance(shape, Scalar):
                return shape
    if len(found) == 1 and found[0].text == "emptyset":
        return Set((), braces=True)
    if len(found) == 1 and found[0].text == "mathbbR":
        return Region((REALS,))
    if len(found) == 1 and found[0].text.startswith("mathbb"):
        raise Unreadable("a named set")
    matrix = _matrix(found)
    if matrix is not None:
        return matrix
    pieces = _split(found, (":",))
    if len(pieces) > 1:
        return Ratio(tuple(_member(piece) for piece in pieces))
    based = _based(found)
    if based is not None:
        return based
    return scalar(found)


def _bracket(name: str) -> str:
    return {"langle": "<", "rangle": ">"}.get(name, name)


def _enclosed(found: list[Token]) -> tuple[str, str, list[Token]] | None:
    """(opening, closing, what is between) where one pair of brackets holds everything; `[1,2)` counts as a pair."""
    first, last = found[0], found[-1]
    if len(found) < 2 or first.text not in OPEN or last.text not in CLOSE:
        return None
    depth = 0
    for at, token in enumerate(found):
        depth += _depth(token)
        if depth == 0 and at < len(found) - 1:
            return None
    return (first.text, last.text, found[1:-1]) if depth == 0 else None


def _depth(token: Token) -> int:
    if token.kind not in ("sign", "command"):
        return 0
    return (token.text in _OPENING) - (token.text in _CLOSING)


def _split(found: list[Token], separators: tuple[str, ...]) -> list[list[Token]]:
    members, depth, start = [], 0, 0
    for at, token in enumerate(found):
        depth += _depth(token)
        if depth == 0 and token.text in separators and token.kind in ("sign", "command", "word"):
            members.append(found[start:at])
            start = at + 1
    members.append(found[start:])
    if len(members) > 1 and not members[-1]:
        members.pop()
    return members


def _matrix(found: list[Token]) -> Shape | None:
    """An environment that fills the whole member."""
    if found[0].text != "begin" or found[0].kind != "command":
        return None
    name, at = _name(found, 1)
    if name not in MATRICES:
        raise Unreadable(f"the environment {name}")
    if name == "array":
        while found[at].text != "}":
            at += 1
        at += 1
    end = len(found) - 1
    while end > 0 and not (found[end].kind == "command" and found[end].text == "end"):
        end -= 1
    closing, after = _name(found, end + 1)
    if closing != name or after != len(found):
        raise Unreadable("a matrix with something beside it")
    rows: list[list[list[Token]]] = [[[]]]
    depth = 0
    for token in found[at:end]:
        depth += _depth(token)
        if depth == 0 and token.kind == "break":
            rows.append([[]])
        elif depth == 0 and token.kind == "sign" and token.text == "&":
            rows[-1].append([])
        elif token.text == "hline" and token.kind == "command":
            continue
        else:
            rows[-1][-1].append(token)
    if rows[-1] == [[]]:
        rows.pop()
    if name == "cases":
        return Cases(tuple(tuple(_value(_condition(cell)) for cell in row) for row in rows))
    if not rows or len({len(row) for row in rows}) != 1:
        raise Unreadable("rows of different lengths")
    return Matrix(tuple(tuple(_value(cell) for cell in row) for row in rows), MATRICES[name])


def _condition(cell: list[Token]) -> list[Token]:
    """A cell of `cases` without its comma and its `if`."""
    while cell and (cell[-1].text in (",", ".", ";") or cell[-1].text in ("if", "for", "when")):
        cell = cell[:-1]
    while cell and cell[0].text.rstrip(",") in ("if", "for", "when", ","):
        cell = cell[1:]
    return cell


def _name(found: list[Token], at: int) -> tuple[str, int]:
    """The name in braces at `at`, and where it ends."""
    name = ""
    if at < len(found) and found[at].text == "{":
        at += 1
        while at < len(found) and found[at].text != "}":
            name += found[at].text
            at += 1
    return name, at + 1


def _based(found: list[Token]) -> Based | None:
    if len(found) < 3 or found[0].kind not in ("number", "alnum") or found[1].text != "_" or "." in found[0].text:
        return None
    rest = found[2:]
    if rest[0].text == "{" and rest[-1].text == "}":
        rest = rest[1:-1]
    if len(rest) != 1:
        return None
    text = rest[0].text.lower()
    base = int(text) if text.isdigit() else _BASES.get(text, 0)
    if not 2 <= base <= 36:
        raise Unreadable("a subscript that is no base")
    return Based(found[0].text.upper().lstrip("0") or "0", base)
