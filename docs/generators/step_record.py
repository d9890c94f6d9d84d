"""docs/reference/step-record.md: the keys of a line of metrics.jsonl, from learner/step_record.py."""

from __future__ import annotations

from docs.generators.markdown import document, table
from docs.generators.source import attribute_docstrings
from learner.step_record import StepRecord, exported

INTRODUCTION = """
One line of `metrics.jsonl` is one optimiser step over all ranks. Shares are 0–1, log-probabilities, entropies and
divergences in nats, times in seconds, staleness in versions. Keys that describe the step's completions are left out
where a step was refused before they were weighed; `null` is a number that was not finite. A step that is trained again
after a crash stands once: what was written after the checkpoint is removed on resume.
"""


def page() -> str:
    """The whole page."""
    told = attribute_docstrings(StepRecord)
    gauges = {field: metric.name for field, metric, _ in exported()}
    rows = [
        [f"`{name}`", " ".join(told[name].split()), f"`{gauges[name]}`" if name in gauges else ""]
        for name in StepRecord.model_fields
    ]
    return document(
        "Step records (metrics.jsonl)",
        "learner/step_record.py",
        INTRODUCTION,
        [table(["key", "meaning", "gauge"], rows)],
    )
