"""Named arguments of the Lua scripts, declared once in each `.lua` file for Lua and Python.

A declaration is one header line per argument, written in the annotations of the Lua language server:

    ---@param actor string              passed on as bytes
    ---@param step number               converted by tonumber
    ---@param admitted number?          None in Python, nil in Lua when absent
    ---@param group_ids string[]        the last argument may be a list …
    ---@param scores {idx: number, data: string}[]          … or a list of records

Redis passes only strings, by position. `Signature.pack` puts keyword arguments into that order and raises on an unknown
or missing name; `Signature.prologue` is Lua that reads them back into locals of the declared names, a record as a
table. It goes between the shared prelude and the body of a script, so that no body refers to a position.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Value = str | bytes | int | float
Argument = Value | None | Iterable[Value] | Iterable[Mapping[str, Any]]

_TYPE = r"string|number\??|(?:string|number|\{[^}]*\})\[\]"
_LINE = re.compile(rf"---@param (?P<name>[a-z_]+) (?P<type>{_TYPE})(?:  .*)?")
_FIELD = re.compile(r"(?P<name>[a-z_]+): (?P<type>string|number)")


@dataclass(frozen=True)
class Signature:
    """The declared arguments of one script, in the order of ARGV."""

    script: str
    scalars: Mapping[str, str]
    """Name → type (string, number or number?)."""
    items: str = ""
    """Name of the list that ends the arguments; empty without one."""
    item: str | Mapping[str, str] = ""
    """Type of the list's items; name → type for records."""

    @cached_property
    def names(self) -> frozenset[str]:
        """The keywords that a call must have."""
        return frozenset([*self.scalars, *([self.items] if self.items else [])])

    def pack(self, given: Mapping[str, Argument]) -> list[Value]:
        """The arguments as one flat list, in the order of ARGV.

        Raises:
            TypeError: a name is missing or unknown, in the call or in a record of its list; or a list is a string.
        """
        if given.keys() != self.names:
            raise TypeError(f"{self.script}.lua takes {_listed(self.names)}, got {_listed(given)}")
        values: list[Any] = [given[name] for name in self.scalars]
        if None in values:
            kinds = self.scalars.items()
            values = ["" if kind == "number?" and given[name] is None else given[name] for name, kind in kinds]
        if isinstance(self.item, Mapping):
            fields, expected = tuple(self.item), self.item.keys()
            records: Any = given[self.items]
            for record in records:
                if record.keys() != expected:
                    raise TypeError(
                        f"{self.script}.lua takes {_listed(expected)} in each of {self.items}, got {_listed(record)}"
                    )
                values += [record[name] for name in fields]
        elif self.items:
            plain: Any = given[self.items]
            if isinstance(plain, str | bytes):  # iterable, but never meant as a list of characters
                raise TypeError(f"{self.script}.lua takes a list of values as {self.items}, got {plain!r:.80}")
            values += plain
        return values

    @property
    def prologue(self) -> str:
        """Lua that assigns ARGV to locals of the declared names."""
        lines = [f"local {name} = {_read(at, kind)}" for at, (name, kind) in enumerate(self.scalars.items(), 1)]
        if self.items:
            first, step, value = len(self.scalars) + 1, "", _read("i", str(self.item))
            if isinstance(self.item, Mapping):
                places = ["i", *(f"i + {at}" for at in range(1, len(self.item)))]
                reads = [
                    f"{name} = {_read(at, kind)}" for at, (name, kind) in zip(places, self.item.items(), strict=True)
                ]
                step, value = f", {len(places)}", "{" + ", ".join(reads) + "}"
            lines += [
                f"local {self.items} = {{}}",
                f"for i = {first}, #ARGV{step} do {self.items}[#{self.items} + 1] = {value} end",
            ]
        return "".join(f"{line}\n" for line in lines)


def parse(script: str, text: str) -> Signature:
    """The signature that the header of `script` (its file's `text`) declares.

    Raises:
        ValueError: a declaration that cannot be read, a repeated name, or a list that is not the last argument.
    """
    scalars: dict[str, str] = {}
    items, item = "", ""
    record: dict[str, str] | None = None
    for line in text.splitlines():
        if not line.startswith("---@"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"{script}.lua: {line!r} is no declaration; see broker/queue/arguments.py for the form")
        name, kind = found["name"], found["type"]
        if items or name in scalars:
            raise ValueError(f"{script}.lua: {name!r} is declared twice, or after the list {items!r}")
        if not kind.endswith("[]"):
            scalars[name] = kind
        elif kind.startswith("{"):
            items, record = name, dict(_fields(script, kind[1:-3]))
        else:
            items, item = name, kind[:-2]
    return Signature(script, scalars, items, item if record is None else record)


def _fields(script: str, text: str) -> Iterator[tuple[str, str]]:
    for part in text.split(", "):
        found = _FIELD.fullmatch(part)
        if found is None:
            raise ValueError(f"{script}.lua: {part!r} is no field of a record; write `name: string` or `name: number`")
        yield found["name"], found["type"]


def _read(at: int | str, kind: str) -> str:
    return f"ARGV[{at}]" if kind == "string" else f"tonumber(ARGV[{at}])"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
