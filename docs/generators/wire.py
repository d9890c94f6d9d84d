"""docs/reference/wire.md: the messages between services and the Redis keys, from the modules that define them."""

from __future__ import annotations

import inspect
import re

from broker.queue import wire
from docs.generators.markdown import document, fill, prose, table
from docs.generators.source import attribute_docstrings, class_docstring

INTRODUCTION = """
Services share nothing but Redis and the files of the published weights. A message is one msgpack map. Token ids and
log-probabilities travel as raw little-endian bytes.
"""


def page() -> str:
    """The whole page."""
    parts = ["## Messages", prose(inspect.cleandoc(wire.__doc__ or "").partition("\n\n")[2])]
    parts += [fill(f"The schema number is {wire.SCHEMA}. A message larger than {wire.MAX_BYTES >> 20} MiB is refused.")]
    for kind in (wire.Prompt, wire.Ticket, wire.Completion, wire.Verdict):
        told = attribute_docstrings(kind)
        rows = [[f"`{name}`", _type(str(kind.__annotations__[name])), told.get(name, "")] for name in kind.model_fields]
        parts += [f"### {kind.__name__}", prose(class_docstring(kind)), table(["field", "type", "meaning"], rows)]
    return document("Wire protocol and Redis keys", "broker/queue", INTRODUCTION, parts)


def _type(annotation: str) -> str:
    """An annotation without its limits: `Annotated[int, Field(ge=0)]` is `int`."""
    short = re.sub(r"Annotated\[([^,]+),.*", r"\1", annotation)
    return f"`{short}`"
