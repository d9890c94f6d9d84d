"""docs/reference/wire.md: the messages between services, the Redis keys and the scripts, from what defines them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from broker.queue import connection, wire
from docs.generators.markdown import document, fill, prose, table
from docs.generators.source import attribute_docstrings, class_docstring

SCRIPTS = Path(wire.__file__).parent / "lua"
INTRODUCTION = """
Services share nothing but Redis and the store of published weights. This page is for those who debug a run with
`redis-cli` or write a client of their own. It is not a stable interface: messages and keys have one schema number, and
a run of another one is refused.
"""


def page() -> str:
    """The whole page."""
    parts = ["## Messages", prose(inspect.cleandoc(wire.__doc__ or "").partition("\n\n")[2])]
    parts += [fill(f"The schema number is {wire.SCHEMA}. A message larger than {wire.MAX_BYTES >> 20} MiB is refused.")]
    for kind in (wire.Prompt, wire.Ticket, wire.Completion, wire.Verdict):
        told = attribute_docstrings(kind)
        rows = [[f"`{name}`", _type(str(kind.__annotations__[name])), told.get(name, "")] for name in kind.model_fields]
        parts += [f"### {kind.__name__}", prose(class_docstring(kind)), table(["field", "type", "meaning"], rows)]
    keys = inspect.cleandoc(connection.__doc__ or "")
    parts += ["## Redis keys", prose(keys[keys.index("Keys, all under") :])]
    parts += ["## Scripts", "Every change of a run is one of these Lua scripts, atomic and safe to repeat."]
    parts += [table(["script", "does", "arguments"], _scripts())]
    return document("Wire protocol and Redis keys", "broker/queue", INTRODUCTION, parts)


def _scripts() -> Iterator[list[str]]:
    """Name, first comment and declared arguments of every script."""
    for file in sorted(SCRIPTS.glob("*.lua")):
        text = file.read_text(encoding="utf-8")
        comment = re.match(r"(?:-- ?[^-@\n].*\n)+", text)
        names = re.findall(r"^---@param (\w+)", text, re.M)
        if file.stem != "prelude":
            said = " ".join(re.sub(r"^-- ?", "", line) for line in comment[0].splitlines()) if comment else ""
            yield [f"`{file.stem}`", said, ", ".join(f"`{name}`" for name in names)]


def _type(annotation: str) -> str:
    """An annotation without its limits: `Annotated[int, Field(ge=0)]` is `int`."""
    short = re.sub(r"Annotated\[([^,]+),.*", r"\1", annotation)
    return f"`{short}`"
