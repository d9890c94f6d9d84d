"""docs/reference/status.md: the kinds of stalls, and the fields of `sieve status --json`."""

from __future__ import annotations

import re

from broker.queue.state import Depths, TicketLease, VerifyQueue
from deploy.observe.stall import MEANING
from deploy.observe.status_report import SCHEMA, ServiceReport, StallReport, StatusReport
from docs.generators.markdown import document, fill, table
from docs.generators.source import attribute_docstrings, class_docstring

INTRODUCTION = """
`sieve status CONFIG` names what stands still, why, and what to do about it; the exit code is 75 when something does, 69
when the broker cannot be asked. The same kinds are the label of the metric `sieve_stalls`. `sieve status CONFIG --json`
prints one JSON object in a line, with `--watch` one each second.
"""


def page() -> str:
    """The whole page."""
    parts = ["## Stalls", table(["kind", "meaning"], [[f"`{kind}`", meaning] for kind, meaning in MEANING.items()])]
    parts += ["## Fields of --json"]
    parts += [
        fill(f"`schema` is {SCHEMA}: it changes when a field is renamed or means something else. Fields are added.")
    ]
    for kind in (StatusReport, StallReport, ServiceReport, Depths, TicketLease, VerifyQueue):
        told = attribute_docstrings(kind)
        rows = [
            [f"`{field.alias or name}`", f"`{_type(str(kind.__annotations__[name]))}`", told.get(name, "")]
            for name, field in kind.model_fields.items()
        ]
        parts += [f"### {kind.__name__}", fill(class_docstring(kind)), table(["field", "type", "meaning"], rows)]
    return document("Status", "deploy/observe/stall.py and status_report.py", INTRODUCTION, parts)


def _type(annotation: str) -> str:
    return re.sub(r"\bNone\b", "null", annotation)
