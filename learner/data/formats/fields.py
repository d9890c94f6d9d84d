"""Typed access to the fields of a row of a data set, and what a converter returns or raises."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any

MAX_DEPTH = 64
"""The deepest nesting of lists and objects; the verifier `python` takes no more."""
MAX_TESTS = 10_000
"""The most tests of a record; the verifier `python` takes no more."""


class NotOfFormat(Exception):
    """A field is not what the format has there. `message` says what it is and what to do about it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field!r} {message}")


@dataclass(frozen=True, slots=True)
class Converted:
    """A row as the verifier `python` reads it."""

    prompt: str
    record: dict[str, Any]


class Fields:
    """The fields of one row. A field that is null counts as missing, as Parquet has no other way to leave one out."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body

    def text(self, name: str, *others: str) -> str:
        """The text of the first of these fields that is there. Raises NotOfFormat if none is, or it is no text."""
        for one in (name, *others):
            if self._body.get(one) is not None:
                return text_of(one, self._body[one])
        here = ", ".join(sorted(map(str, self._body)))
        raise NotOfFormat(name, f"is missing; found {here[:200] or 'none'}: correct data.format or the row")

    def optional_text(self, name: str) -> str:
        """The text of a field, empty if it is missing. Raises NotOfFormat."""
        return "" if self._body.get(name) is None else self.text(name)

    def texts(self, name: str) -> list[str]:
        """A field's list of texts, empty if it is missing; a list written as JSON text is read. Raises NotOfFormat."""
        value = self.json(name, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise NotOfFormat(name, "is not a list of texts: correct or remove the row")
        return value

    def json(self, name: str, default: Any = None) -> Any:
        """A field's value, read as JSON if it is text; `default` if it is missing or blank. Raises NotOfFormat."""
        value = self._body.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            return default
        return json_of(name, value) if isinstance(value, str) else checked(name, value)


def text_of(field: str, value: Any) -> str:
    """`value` if it is text that can be encoded. Raises NotOfFormat."""
    if not isinstance(value, str):
        raise NotOfFormat(field, f"is {type(value).__name__}, expected text: correct or remove the row")
    checked(field, value)
    return value


def json_of(field: str, text: str) -> Any:
    """The value of JSON text. Raises NotOfFormat."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotOfFormat(field, f"is not JSON ({str(error)[:200]}): correct or remove the row") from None
    return checked(field, value)


def checked(field: str, value: Any) -> Any:
    """`value` if it is made of JSON's types, at most MAX_DEPTH deep, its texts encodable. Raises NotOfFormat."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below += one.keys()
                below += one.values()
            elif isinstance(one, list):
                below += one
            elif isinstance(one, str):
                try:
                    one.encode()
                except UnicodeEncodeError:
                    raise NotOfFormat(field, "holds half a surrogate pair: correct or remove the row") from None
            elif one is not None and not isinstance(one, bool | int | float):
                raise NotOfFormat(field, f"holds {type(one).__name__}, which JSON has not: store text or numbers")
        if not below:
            return value
        level = below
    raise NotOfFormat(field, f"is nested more than {MAX_DEPTH} deep: remove the row")


def identifier(field: str, value: Any) -> str:
    """`value` if it is a Python name. Raises NotOfFormat."""
    if not isinstance(value, str) or not value.isidentifier() or iskeyword(value):
        raise NotOfFormat(field, f"names the function {str(value)[:60]!r}, which is no Python name: correct the row")
    return value


def record_of(field: str, tests: list[dict[str, Any]], entry: str = "", setup: str = "") -> dict[str, Any]:
    """The record of `tests`, without keys that would be empty. Raises NotOfFormat for no tests, or too many."""
    if not tests:
        raise NotOfFormat(field, "has no tests, so that no answer can be judged: remove the row")
    if len(tests) > MAX_TESTS:
        raise NotOfFormat(field, f"has {len(tests)} tests, at most {MAX_TESTS}: shorten the list")
    record: dict[str, Any] = {"tests": tests}
    if entry:
        record["entry"] = entry
    if setup:
        record["setup"] = setup
    return record
