"""Objects that other distributions add to a run: found by entry point, imported by `package.module:attribute`.

Verifiers (`sieve.verifiers`) and objectives (`sieve.objectives`) are found through here, so that both are named, looked
up and refused in the same words.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

from broker.errors import SieveError


def installed(group: str) -> dict[str, list[str]]:
    """Name → `package.module:attribute` of each entry point of `group` that has this name, sorted, without repeats."""
    found: dict[str, set[str]] = {}
    for point in importlib.metadata.entry_points(group=group):
        found.setdefault(point.name, set()).add(point.value)
    return {name: sorted(values) for name, values in sorted(found.items())}


def load(what: str, where: str, error: type[SieveError]) -> Callable[..., Any]:
    """The class or function at `where`, `package.module:attribute`.

    Raises `error`, naming `what` (`objective 'mine'`), for text of another form, a failed import and an attribute that
    cannot be called.
    """
    module, _, attribute = where.partition(":")
    if not module or not attribute:
        raise error(f"{what}: factory {where!r} is not of the form package.module:attribute")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as cause:
        raise error(f"{what}: cannot import {where!r}: {cause}; install it or correct the name") from cause
    if not callable(found):
        raise error(f"{what}: {where!r} is {type(found).__name__}, not a class or function")
    factory: Callable[..., Any] = found
    return factory
