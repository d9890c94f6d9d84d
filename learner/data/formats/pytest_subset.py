"""What the tests of KodCode use of pytest: `approx`, `raises`, `fail`, `param` and `mark.parametrize`.

The source of this module is the setup of such records: it runs where programs are judged, which has no pytest. Standard
library only, and nothing relative.
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any


class Approx:
    """A number, or a list, tuple or dict of them, that equals what is within its tolerance; as `pytest.approx`."""

    def __init__(self, expected: Any, rel: float | None = None, abs: float | None = None, nan_ok: bool = False) -> None:
        self._expected, self._rel, self._abs, self._nan_ok = expected, rel, abs, nan_ok

    def __eq__(self, found: object) -> bool:
        return self._near(self._expected, found)

    def __repr__(self) -> str:
        return f"approx({self._expected!r})"

    def _near(self, expected: Any, found: Any) -> bool:
        if isinstance(expected, (list, tuple)):
            same = isinstance(found, (list, tuple)) and len(found) == len(expected)
            return same and all(self._near(one, other) for one, other in zip(expected, found, strict=True))
        if isinstance(expected, dict):
            same = isinstance(found, dict) and bool(found.keys() == expected.keys())
            return same and all(self._near(value, found[key]) for key, value in expected.items())
        if any(isinstance(one, bool) or not isinstance(one, (int, float, complex)) for one in (expected, found)):
            return type(found) is type(expected) and bool(found == expected)
        if expected == found:
            return True
        if expected != expected:
            return self._nan_ok and bool(found != found)
        if isinstance(expected, complex) or isinstance(found, complex) or not math.isfinite(expected):
            return False
        absolute = 1e-12 if self._abs is None else self._abs
        relative = 1e-6 if self._rel is None else self._rel
        if self._rel is None and self._abs is not None:
            relative = 0.0
        return bool(abs(expected - found) <= max(absolute, relative * abs(expected)))


class Failed(BaseException):
    """A test that failed; no handler of Exception takes it for an exception of what is tested."""


def fail(reason: str = "", pytrace: bool = True) -> None:
    """Fail the test."""
    raise Failed(reason)


class Raises:
    """A block that must raise `expected` (a class or a tuple of them) with a message in which `match` is found."""

    value: BaseException
    type: type[BaseException]

    def __init__(self, expected: Any, match: str | None) -> None:
        self._expected, self._match = expected, match

    def __enter__(self) -> "Raises":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> bool:
        if error is None:
            raise Failed(f"nothing was raised, expected {self._expected!r}")
        if not isinstance(error, self._expected):
            return False
        if self._match is not None and re.search(self._match, str(error)) is None:
            raise Failed(f"{str(error)!r:.200} does not match {self._match!r}")
        self.value, self.type = error, kind
        return True


def raises(expected: Any, *call: Any, match: str | None = None, **keywords: Any) -> Raises:
    """`pytest.raises`, as a context or with a function and its arguments."""
    context = Raises(expected, match)
    if call:
        with context:
            call[0](*call[1:], **keywords)
    return context


class Param:
    """One case of `parametrize`; its id and marks are not looked at."""

    def __init__(self, *values: Any, **_: Any) -> None:
        self.values = values


def parametrize(names: Any, cases: Iterable[Any], **_: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that makes one test of all cases, which stops at the first that fails."""
    wanted = [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else list(names)
    cases = list(cases)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        def every(**given: Any) -> None:
            for case in cases:
                values = case.values if isinstance(case, Param) else (case,) if len(wanted) == 1 else tuple(case)
                test(**given, **dict(zip(wanted, values, strict=True)))

        return every

    return decorate


class Mark:
    """`pytest.mark`."""

    parametrize = staticmethod(parametrize)


class pytest:
    """The names of the package that tests may use."""

    approx, param, mark = Approx, Param, Mark
    raises, fail = staticmethod(raises), staticmethod(fail)
