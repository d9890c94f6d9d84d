r"""The grammar of final answers: from tokens to one typed value. Nothing is evaluated, and no token is passed over.

    value      relation | member ("," member)* | member ("or" member)*
    member     ( … ) | [ … ] | \{ … \} | matrix | interval ∪ … | expression unit
    expression term (± term)* …

An expression is a nested list for numeric.py: `["+", a, b]`, `["*", a, b]`, `["/", a, b]`, `["^", a, b]`, `["neg", a]`,
`["q", "3/2"]`, `["c", "pi"]`, `["s", "x"]`, `["f", "sin", a]`, `["root", n, a]`, `["fact", a]`, `["log", base, a]`,
`["binom", n, k]`, `["abs", a]`, `["deg", a]`. What this grammar does not know is Unreadable and can only be compared
as text: a reader that skipped it would take two different answers for one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from verifier.builtin.math.spelling import FUNCTIONS, Token, Unreadable
from verifier.builtin.math.units import currency, unit_of

Expression = list[Any]
Shape = Any

GREEK = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi "
    "omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar".split()
)
RELATIONS = {"=": "=", "<": "<", ">": ">", "le": "<=", "ge": ">=", "ne": "!=", "in": "in", "equiv": "==", "approx": "~"}
OPEN, CLOSE = {"(": ")", "[": "]", "\\{": "\\}", "langle": "rangle"}, {")", "]", "\\}", "rangle"}
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
          "eleven": 11, "twelve": 12, "sixteen": 16}  # fmt: skip
MATRICES = {"pmatrix": "", "bmatrix": "", "matrix": "", "Bmatrix": "", "array": "", "smallmatrix": "", "vmatrix": "det",
            "cases": "cases"}  # fmt: skip


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


def read(found: list[Token]) -> Shape:
    """The typed value of an answer. Raises Unreadable."""
    if not found:
        raise Unreadable("nothing is left")
    return _value(found)


def _value(found: list[Token]) -> Shape:
    while len(found) > 2 and (found[0].text, found[-1].text) == ("{", "}") and _wraps(found):
        found = found[1:-1]  # braces that only hold together what a font or colour is for
    for separators in (("or",), (";",), (",",)):
        members = _split(found, separators)
        if len(members) > 1:
            if separators == (",",):
                joined = _thousands(found)
                if joined is not None:
                    found = joined
                    members = _split(found, separators)
                    if len(members) == 1:
                        break
            if members[-1] and members[-1][0].text == "and" and members[-1][0].kind in ("command", "word"):
                members[-1] = members[-1][1:]
            shapes = [_value(member) for member in members]
            if separators == ("or",) or all(isinstance(shape, Region | Relation) and _region(shape) for shape in shapes):
                regions = [_region(shape) for shape in shapes]
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


def _relation(found: list[Token]) -> Shape:
    sides, ops, start, depth = [], [], 0, 0
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
        region = shape if isinstance(shape, Region) else _as_region(shape)
        if region is None:
            raise Unreadable("membership in something that is no set of numbers")
        return region
    return Relation(tuple(_member(side) for side in sides), tuple(ops))


def _region_or_member(found: list[Token]) -> Shape:
    pieces = _split(found, ("cup",))
    minus = _split(found, ("setminus",))
    if len(minus) == 2:
        whole, gone = _as_region(_region_or_member(minus[0])), _member(minus[1])
        if whole is None or not isinstance(gone, Set) or whole.parts != (REALS,):
            raise Unreadable("a difference of sets that is not all reals without points")
        points = [_number(member) for member in gone.members]
        if any(point is None for point in points) and len(points) != 1:
            raise Unreadable("points that cannot be put in order")
        return without([member for _, member in sorted(zip(points, gone.members, strict=True), key=lambda p: p[0] or 0)])
    if len(pieces) > 1:
        regions = [_as_region(_member(piece)) for piece in pieces]
        if all(region is not None for region in regions):
            return Region(tuple(part for region in regions if region for part in region.parts))
        raise Unreadable("a union of things that are no sets of numbers")
    return _member(found)


INFINITY: Expression = ["c", "inf"]
REALS = Interval(["neg", INFINITY], INFINITY, (False, False))


def without(points: list[Shape]) -> Region:
    """All reals but these points, which are in order."""
    ends: list[Expression] = [["neg", INFINITY], *(point.tree for point in points), INFINITY]
    return Region(tuple(Interval(low, high, (False, False)) for low, high in zip(ends, ends[1:], strict=False)))


def _number(shape: Shape) -> Fraction | None:
    return shape.number if isinstance(shape, Scalar) else None


def _as_region(shape: Shape) -> Region | None:
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
    return _region(shape) if isinstance(shape, Relation) else _as_region(shape)


def _region(shape: Shape) -> Region | None:
    """`x > 3`, `1 < x <= 3`, `x != 2` as a set of reals; None for other relations."""
    if isinstance(shape, Region):
        return shape
    if not isinstance(shape, Relation) or not all(isinstance(side, Scalar) and not side.unit for side in shape.sides):
        return None
    trees = [side.tree for side in shape.sides]
    ops = list(shape.ops)
    unknown = [at for at, tree in enumerate(trees) if tree[0] == "s"]
    if len(unknown) != 1 or any(symbols(tree) & symbols(trees[unknown[0]]) for at, tree in enumerate(trees) if at != unknown[0]):
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


def _member(found: list[Token]) -> Shape:
    """One member: something in brackets, a matrix, a ratio, or an expression with its unit."""
    if not found:
        raise Unreadable("an empty member")
    inner = _enclosed(found)
    if inner is not None:
        opening, closing, body = inner
        if any(token.space and before.text == "," for before, token in zip(body, body[1:], strict=False)):
            body = _thousands(body) or body  # (1,000, 2,000): the commas without a space are inside numbers
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
    return _scalar(found)


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
    name = token.text
    return (name in OPEN or name in ("{", "begin", "lfloor", "lceil")) - (name in CLOSE or name in ("}", "end", "rfloor", "rceil"))


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


def _thousands(found: list[Token]) -> list[Token] | None:
    """A list in which every comma stands between digits and in groups of three without spaces: `1,000` is one number.

    Where a comma with a space after it separates members too (`1,000, 2,000`), only the tight ones join.
    """
    joined: list[Token] = []
    at, changed = 0, False
    while at < len(found):
        token = found[at]
        if token.kind == "number" and re.fullmatch(r"\d{1,3}", token.text) and (token.text == "0" or token.text[0] != "0"):
            digits, end = token.text, at + 1
            while (
                end + 1 < len(found) and found[end].text == "," and not found[end].space
                and found[end + 1].kind == "number" and not found[end + 1].space
                and re.fullmatch(r"\d{3}(\.\d+)?", found[end + 1].text)
            ):  # fmt: skip
                digits, end = digits + found[end + 1].text, end + 2
            if end > at + 1:
                joined.append(Token("number", digits, token.space))
                at, changed = end, True
                continue
        joined.append(token)
        at += 1
    return joined if changed else None


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


def _scalar(found: list[Token]) -> Shape:
    found, unit = unit_of(found)
    front, found = currency(found)
    if front and unit:
        raise Unreadable("two units")
    signs = [token.text for token in found if token.kind == "command" and token.text in ("pm", "mp")]
    if signs:
        if unit or front or signs.count("pm") > 1 or signs.count("mp") > 1:
            raise Unreadable("signs that can be read in more than one way")
        both = [_plain_scalar(_signed(found, sign), "") for sign in (1, -1)]
        return Set(tuple(both))
    return _plain_scalar(found, unit or front)


def _signed(found: list[Token], sign: int) -> list[Token]:
    swap = {"pm": "+" if sign > 0 else "-", "mp": "-" if sign > 0 else "+"}
    return [
        Token("sign", swap[token.text], token.space) if token.kind == "command" and token.text in swap else token
        for token in found
    ]


def _plain_scalar(found: list[Token], unit: str) -> Scalar:
    if not found:
        raise Unreadable("a unit without a number")
    number = literal(found)
    decimal = any(token.kind == "number" and "." in token.text for token in found)
    if number is not None:
        return Scalar(["q", str(number)], unit, number, decimal)
    reader = _Reader(found)
    tree = reader.expression()
    if reader.at != len(reader.found):
        raise Unreadable(f"{reader.found[reader.at].text!r} is left over")
    if tree[0] == "deg" and not unit:
        tree, unit = tree[1], "degree"
        number = _value_of_literal(tree)
        if number is not None:
            return Scalar(["q", str(number)], unit, number, decimal)
    if tree[0] == "pct" and not unit:
        tree, unit = tree[1], "%"
        number = _value_of_literal(tree)
        if number is not None:
            return Scalar(["q", str(number)], unit, number, decimal)
    if _has(tree, "pct"):
        raise Unreadable("a per cent sign inside")
    return Scalar(tree, unit, None, decimal, True)


def _value_of_literal(tree: Expression) -> Fraction | None:
    if tree[0] == "q":
        return Fraction(tree[1])
    if tree[0] == "neg" and tree[1][0] == "q":
        return -Fraction(tree[1][1])
    return None


def _has(tree: Any, name: str) -> bool:
    return tree[0] == name or any(_has(part, name) for part in tree[1:] if isinstance(part, list))


def literal(found: list[Token]) -> Fraction | None:
    r"""The value of a written-out number, None for anything else.

    A number is an integer, a decimal (periodic too), `a/b`, `\frac{a}{b}`, a mixed number, or scientific notation.
    `2^{10}`, `6!`, `2+3` and `\sqrt{4}` are work left undone.
    """
    while len(found) > 2 and (found[0].text, found[-1].text) in (("(", ")"), ("{", "}")) and _wraps(found):
        found = found[1:-1]
    sign = 1
    if found and found[0].text in ("+", "-") and found[0].kind == "sign":
        sign, found = (-1 if found[0].text == "-" else 1), found[1:]
        while len(found) > 2 and (found[0].text, found[-1].text) == ("{", "}") and _wraps(found):
            found = found[1:-1]
    if not found:
        return None
    joined = _thousands(found)
    value = _unsigned(joined if joined is not None else found)
    return None if value is None else sign * value


def _wraps(found: list[Token]) -> bool:
    depth = 0
    for at, token in enumerate(found):
        depth += (token.text in "({" and token.kind == "sign") - (token.text in ")}" and token.kind == "sign")
        if depth == 0:
            return at == len(found) - 1
    return False


def decimal_value(text: str) -> Fraction:
    """The exact value of a number token. Raises Unreadable for an exponent of more than five digits."""
    if len(re.split("[eE]", text)[-1].lstrip("+-")) > 5 and re.search("[eE]", text):
        raise Unreadable("an exponent of more than five digits")
    return Fraction(text[:-1] if text.endswith(".") else text)


def _unsigned(found: list[Token]) -> Fraction | None:
    texts = [token.text for token in found]
    kinds = [token.kind for token in found]
    if kinds == ["number"]:
        return decimal_value(texts[0])
    if kinds[:2] == ["number", "command"] and texts[1] == "overline" and texts[2:3] == ["{"] and texts[-1] == "}":
        if len(found) == 5 and kinds[3] == "number" and texts[3].isdigit() and "." in texts[0]:
            return _periodic(texts[0], texts[3])
        return None
    if kinds == ["number", "sign", "number"] and texts[1] == "/" and texts[0].isdigit() and texts[2].isdigit():
        return Fraction(int(texts[0]), int(texts[2])) if int(texts[2]) else None
    if kinds == ["number", "number", "sign", "number"] and texts[2] == "/" and found[1].space:
        whole, top, bottom = texts[0], texts[1], texts[3]
        if whole.isdigit() and top.isdigit() and bottom.isdigit() and 0 < int(top) < int(bottom):
            return int(whole) + Fraction(int(top), int(bottom))
        return None
    if texts and texts[0] == "frac" and kinds[0] == "command":
        pair = _two_integers(found[1:])
        return Fraction(*pair) if pair is not None and pair[1] else None
    if len(texts) > 1 and kinds[0] == "number" and texts[0].isdigit() and texts[1] == "frac":
        pair = _two_integers(found[2:])
        if pair is not None and pair[0] > 0 and pair[1] > 0:
            return int(texts[0]) + Fraction(*pair)
        return None
    if kinds[0] == "number" and texts[1:4] in (["times", "10", "^"], ["cdot", "10", "^"], ["*", "10", "^"]):
        rest = [text for text in texts[4:] if text not in ("{", "}", "(", ")")]
        digits = "".join(rest)
        if re.fullmatch(r"[-+]?\d{1,3}", digits) and len(rest) <= 2:
            return decimal_value(texts[0]) * Fraction(10) ** int(digits)
    return None


def _periodic(start: str, period: str) -> Fraction:
    head, _, tail = start.partition(".")
    shift = 10 ** len(tail)
    return Fraction(int((head or "0") + tail), shift) + Fraction(int(period), shift * (10 ** len(period) - 1))


def _two_integers(found: list[Token]) -> tuple[int, int] | None:
    """The integers of `{a}{b}`, `ab` (two digits) or a mixture, when nothing else is there."""
    values: list[int] = []
    at = 0
    while at < len(found) and len(values) < 2:
        if found[at].text == "{":
            end = at + 1
            while end < len(found) and found[end].text != "}":
                end += 1
            inside = [token.text for token in found[at + 1 : end] if not (token.text == "+")]
            text = "".join(inside)
            if not re.fullmatch(r"-?\d+", text) or len(inside) > 2:
                return None
            values.append(int(text))
            at = end + 1
        elif found[at].kind == "number" and found[at].text.isdigit():
            digits = found[at].text
            if len(digits) == 2 and not values:
                values += [int(digits[0]), int(digits[1])]
            elif len(digits) == 1:
                values.append(int(digits))
            else:
                return None
            at += 1
        else:
            return None
    return (values[0], values[1]) if len(values) == 2 and at == len(found) else None


class _Reader:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, found: list[Token]) -> None:
        self.found, self.at = list(found), 0

    def peek(self, offset: int = 0) -> Token | None:
        return self.found[self.at + offset] if self.at + offset < len(self.found) else None

    def sign(self, *texts: str) -> bool:
        token = self.peek()
        return token is not None and token.kind in ("sign", "command") and token.text in texts

    def expect(self, text: str) -> None:
        if not self.sign(text):
            raise Unreadable(f"{text!r} is missing")
        self.at += 1

    def expression(self) -> Expression:
        total = self._first_term()
        while self.sign("+", "-"):
            minus = self.sign("-")
            self.at += 1
            term = self.term()
            total = ["+", total, ["neg", term] if minus else term]
        return total

    def _first_term(self) -> Expression:
        if self.sign("+"):
            self.at += 1
            return self.term()
        if self.sign("-"):
            self.at += 1
            return ["neg", self._first_term()]
        return self.term()

    def term(self) -> Expression:
        total = self.factor()
        while True:
            if self.sign("*", "cdot", "times"):
                self.at += 1
                total = ["*", total, self._signed_factor()]
            elif self.sign("/", "div"):
                self.at += 1
                total = ["/", total, self._signed_factor()]
            elif self._begins():
                total = ["*", total, self.factor()]
            else:
                return total

    def _signed_factor(self) -> Expression:
        if self.sign("-"):
            self.at += 1
            return ["neg", self.factor()]
        return self.factor()

    def _begins(self) -> bool:
        """Whether the next token begins a factor that is multiplied without a sign."""
        token = self.peek()
        if token is None or token.kind == "number":
            return False  # 1 2 is not 12 and x2 is no product
        if token.kind in ("letter", "run"):
            return True
        if token.kind == "sign":
            return token.text in ("(", "{", "[")
        return token.kind == "command" and (
            token.text in FUNCTIONS or token.text in GREEK
            or token.text in ("frac", "pi", "binom", "lfloor", "lceil", "overline", "vec", "hat", "bar", "infty")
        )  # fmt: skip

    def factor(self) -> Expression:
        base = self.base()
        while True:
            if self.sign("!"):
                self.at += 1
                base = ["fact", base]
            elif self.sign("%"):
                self.at += 1
                base = ["pct", base]
            elif self.sign("^"):
                self.at += 1
                if self.sign("circ") or (self.sign("{") and self._circle()):
                    self.at += 3 if self.sign("{") else 1
                    base = ["deg", base]
                    continue
                base = ["^", base, self.argument(whole=True)]
            elif self.sign("circ"):
                self.at += 1
                base = ["deg", base]
            elif self.sign("'", "prime"):
                raise Unreadable("a prime")
            else:
                return base

    def _circle(self) -> bool:
        inside, closing = self.peek(1), self.peek(2)
        return inside is not None and inside.text == "circ" and closing is not None and closing.text == "}"

    def argument(self, *, whole: bool) -> Expression:
        """The argument of a command: a group or one token; `whole`: a number without braces counts with all digits."""
        token = self.peek()
        if token is None:
            raise Unreadable("an argument is missing")
        if self.sign("{"):
            return self.group("{", "}")
        if whole and self.sign("-", "+"):
            minus = self.sign("-")
            self.at += 1
            inner = self.argument(whole=True)
            return ["neg", inner] if minus else inner
        if token.kind == "number":
            if not whole and len(token.text) > 1:
                if not token.text.isdigit():
                    raise Unreadable("a decimal without braces")
                self.found[self.at] = Token("number", token.text[1:])
                return ["q", token.text[0]]
            self.at += 1
            return ["q", str(decimal_value(token.text))]
        if token.kind == "run":
            self.found[self.at : self.at + 1] = [Token("letter", letter) for letter in token.text]
            return self.base()
        return self.base()

    def group(self, opening: str, closing: str) -> Expression:
        self.expect(opening)
        inner = self.expression()
        self.expect(closing)
        return inner

    def base(self) -> Expression:
        token = self.peek()
        if token is None:
            raise Unreadable("the expression ends too early")
        if token.kind == "number":
            return self._number(token)
        if token.kind == "letter":
            self.at += 1
            return self._letter(token.text)
        if token.kind == "run":
            if len(token.text) > 3:
                raise Unreadable(f"the word {token.text}")
            self.found[self.at : self.at + 1] = [Token("letter", letter) for letter in token.text]
            return self.base()
        if token.kind in ("sign", "command"):
            for opening, closing in (("(", ")"), ("{", "}"), ("[", "]")):
                if token.text == opening and token.kind == "sign":
                    return self.group(opening, closing)
            if token.text == "|":
                self.at += 1
                inner = self.expression()
                self.expect("|")
                return ["abs", inner]
        if token.kind == "command":
            return self._command(token.text)
        raise Unreadable(f"{token.text!r} cannot begin a factor")

    def _number(self, token: Token) -> Expression:
        self.at += 1
        after = self.peek()
        if after is not None and after.text == "overline" and "." in token.text:
            value = literal(self.found[self.at - 1 : self.at + 4])
            if value is None:
                raise Unreadable("a period that cannot be read")
            self.at += 4
            return ["q", str(value)]
        if after is not None and after.text == "frac" and token.text.isdigit():
            start = self.at
            self.at += 1
            top, bottom = self.argument(whole=False), self.argument(whole=False)
            if top[0] == bottom[0] == "q" and Fraction(bottom[1]) != 0:
                return ["q", str(Fraction(token.text) + Fraction(top[1]) / Fraction(bottom[1]))]  # a mixed number
            self.at = start
        if after is not None and (after.kind == "number" or after.text == "_"):
            raise Unreadable("two numbers side by side, or a number with a subscript")
        return ["q", str(decimal_value(token.text))]

    def _letter(self, name: str) -> Expression:
        name += self._subscript()
        if name == "e":
            return ["c", "e"]
        if name == "i":
            return ["c", "i"]
        if name in ("f", "g", "h", "F", "G") and self.sign("("):
            start = self.at
            self.group("(", ")")
            return ["s", name + "".join(token.text for token in self.found[start : self.at])]
        return ["s", name]

    def _subscript(self) -> str:
        if not self.sign("_"):
            return ""
        self.at += 1
        if not self.sign("{"):
            token = self.peek()
            if token is None or token.kind not in ("number", "letter", "run"):
                raise Unreadable("a subscript that cannot be read")
            self.at += 1
            return "_" + token.text
        start, depth = self.at + 1, 0
        while self.at < len(self.found):
            depth += (self.found[self.at].text == "{") - (self.found[self.at].text == "}")
            self.at += 1
            if depth == 0:
                return "_" + "".join(token.text for token in self.found[start : self.at - 1])
        raise Unreadable("a subscript that does not close")

    def _command(self, name: str) -> Expression:
        self.at += 1
        if name == "pi":
            return ["c", "pi"]
        if name == "infty":
            return ["c", "inf"]
        if name in GREEK:
            return ["s", "\\" + name + self._subscript()]
        if name == "frac":
            return ["/", self.argument(whole=False), self.argument(whole=False)]
        if name == "binom":
            return ["binom", self.argument(whole=False), self.argument(whole=False)]
        if name in ("lfloor", "lceil"):
            inner = self.expression()
            self.expect("rfloor" if name == "lfloor" else "rceil")
            return ["f", "floor" if name == "lfloor" else "ceil", inner]
        if name in ("overline", "vec", "hat", "bar"):
            self.expect("{")
            start = self.at
            while not self.sign("}"):
                token = self.peek()
                if token is None or token.kind not in ("letter", "run"):
                    raise Unreadable(f"\\{name} over something that is no name")
                self.at += 1
            self.at += 1
            return ["s", f"\\{name} " + "".join(token.text for token in self.found[start : self.at - 1])]
        if name == "sqrt":
            if self.sign("["):
                index = self.group("[", "]")
                return ["root", index, self.argument(whole=True)]
            if self.sign("("):
                return ["root", ["q", "2"], self.group("(", ")")]
            return ["root", ["q", "2"], self.argument(whole=True)]
        if name in FUNCTIONS:
            return self._function(name)
        raise Unreadable(f"\\{name}")

    def _function(self, name: str) -> Expression:
        power = index = None
        while self.sign("^", "_"):
            if self.sign("^") and power is None:
                self.at += 1
                power = self.argument(whole=True)
            elif self.sign("_") and index is None and name == "log":
                self.at += 1
                index = self.argument(whole=True)
            else:
                raise Unreadable(f"\\{name} with two powers or a subscript")
        if power == ["neg", ["q", "1"]]:
            if name not in ("sin", "cos", "tan"):
                raise Unreadable(f"the inverse of \\{name}")
            name, power = "a" + name, None
        if self.sign("("):
            inner = self.group("(", ")")
        elif self.sign("{"):
            inner = self.group("{", "}")
        elif self.sign("|"):
            inner = self.base()
        else:
            inner = self._bare_argument()
        if name == "abs":
            tree: Expression = ["abs", inner]
        elif name == "log":
            tree = ["log", index if index is not None else ["q", "10"], inner]
        elif name == "ln":
            tree = ["log", ["c", "e"], inner]
        else:
            tree = ["f", name, inner]
        return tree if power is None else ["^", tree, power]

    def _bare_argument(self) -> Expression:
        """What follows a function without brackets: a product up to the next sign or function."""
        inner = self._signed_factor()
        while self._begins() and not (self.peek() or Token("sign", "")).text in FUNCTIONS - {"sqrt"}:
            inner = ["*", inner, self.factor()]
        while self.sign("/") and self.peek(1) is not None and self.peek(1).kind == "number":  # type: ignore[union-attr]
            self.at += 1
            inner = ["/", inner, self.factor()]
        return inner
