r"""One expression with its unit, read by recursive descent over its tokens.

    expression  term (± term)*            term  factor (·, /, or nothing, factor)*            factor  base ^ ! ° %

No token is passed over: what is not known is Unreadable.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from verifier.builtin.math.literal import decimal_value, literal
from verifier.builtin.math.spelling import FUNCTIONS, Token, Unreadable
from verifier.builtin.math.units import currency, unit_of
from verifier.builtin.math.values import Expression, Scalar, Set, Shape

_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi "
    "chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar"
)
GREEK = frozenset(_GREEK.split())


def scalar(found: list[Token]) -> Shape:
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
        while self._begins() and (self.peek() or Token("sign", "")).text not in FUNCTIONS - {"sqrt"}:
            inner = ["*", inner, self.factor()]
        while self.sign("/") and self.peek(1) is not None and self.peek(1).kind == "number":  # type: ignore[union-attr]
            self.at += 1
            inner = ["/", inner, self.factor()]
        return inner
