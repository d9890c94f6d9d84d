"""The results of one run, read from its files: metrics of the base and the tuned model, and the counts of its groups.

Metrics of an evaluation are computed from its raw samples where the run kept them, and taken from eval.jsonl where it
did not; where both are there they must agree. Only files are read, so that a running, a stopped and a finished run have
a report alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.rundir import run_files
from deploy.rundir.run_files import RecordError, Samples
from deploy.rundir.schema import check_schema
from learner.evaluation.stats import bootstrap, pass_at_k
from learner.step_record import StepRecord

SUMMARY_KS = (1, 16, 64, 128)
"""The k for which summary.json has pass@k."""
TOLERANCE = 1e-4
"""Largest difference between eval.jsonl and the raw samples that rounding may explain."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluated version: its metrics by name, and pass@k over k with a bootstrap interval."""

    version: int
    step: int
    prompts: int
    metrics: dict[str, float]
    """`pass@<k>` and `distinct_correct`."""
    ks: tuple[int, ...]
    curve: tuple[float, ...]
    """pass@k for each of `ks`."""
    low: tuple[float, ...]
    high: tuple[float, ...]
    """95 % bootstrap interval over prompts; equal to the curve where there are no raw samples."""


@dataclass(frozen=True)
class Report:
    """The results of one run: what summary.json holds, and what the table and the plots need beside it."""

    summary: dict[str, Any]
    base: Evaluation | None
    """Version 0; None before its evaluation."""
    tuned: Evaluation | None
    """The newest evaluated version; None before one after version 0."""
    steps: list[StepRecord]
    """The records of metrics.jsonl."""


def summarize(run: Path, audit: dict[str, Any] | None = None) -> Report:
    """The report of the run in the directory `run`.

    `audit` is the broker's, asked just now; by default the one that was saved at the end of the run. Raises
    SchemaError, and RecordError when nothing was trained or evaluated yet or the files contradict each other.
    """
    check_schema(run)
    steps = run_files.steps(run)
    evaluated = run_files.evaluations(run)
    if not steps and not evaluated:
        raise RecordError(
            f"{run}: has neither metrics.jsonl nor eval.jsonl yet, so there is nothing to report; start `sieve run`"
        )
    base = next((evaluation(run, record) for record in evaluated if record["version"] == 0), None)
    tuned = evaluation(run, evaluated[-1]) if evaluated and evaluated[-1]["version"] > 0 else None
    seconds = run_files.wall_seconds(run)
    if seconds is None and steps:
        seconds = steps[-1].time - steps[0].time
    counted = (audit if audit is not None else run_files.audit(run)) or {}
    summary = {
        "base": _summary_of(base),
        "tuned": _summary_of(tuned),
        "wall_seconds": None if seconds is None else round(seconds, 1),
        "groups_trained": counted.get("committed", sum(record.groups or 0 for record in steps)),
        "completions": counted.get("completions", sum(record.completions for record in steps)),
        # Only the broker knows these two: without its audit they are unknown, not zero.
        "duplicates": counted.get("duplicates"),
        "lost": counted.get("lost"),
        "staleness_mean": _mean_over_groups(steps, "staleness_mean"),
        "ess_mean": _mean_over_groups(steps, "ess_rho_alpha"),
    }
    return Report(summary, base, tuned, steps)


def evaluation(run: Path, record: dict[str, Any]) -> Evaluation:
    """The evaluation that `record`, a record of eval.jsonl, is about.

    Raises RecordError where the record and the raw samples differ by more than TOLERANCE.
    """
    version, step = int(record["version"]), int(record["step"])
    recorded = {
        name: float(value) for name, value in record.items() if name.startswith("pass@") or name == "distinct_correct"
    }
    raw = run_files.samples(run, version)
    if raw is None or not raw.n:
        ks = tuple(sorted(int(name[5:]) for name in recorded if name.startswith("pass@")))
        curve = tuple(recorded[f"pass@{k}"] for k in ks)
        return Evaluation(version, step, int(record["prompts"]), recorded, ks, curve, curve, curve)
    ks, each = per_prompt(raw)
    curve = tuple(float(value) for value in each.mean(axis=0))
    metrics = {f"pass@{k}": value for k, value in zip(ks, curve, strict=True)}
    metrics["distinct_correct"] = float(np.mean(raw.distinct))
    for name in sorted(recorded.keys() & metrics.keys()):
        if abs(recorded[name] - metrics[name]) > TOLERANCE:
            raise RecordError(
                f"{run / 'eval.jsonl'}: version {version} says {name} = {recorded[name]:.5f}, its raw samples give "
                f"{metrics[name]:.5f} (limit {TOLERANCE}); one of the two files was changed: evaluate again"
            )
    bounds = [bootstrap(column) for column in each.T]
    low, high = tuple(bound.low for bound in bounds), tuple(bound.high for bound in bounds)
    return Evaluation(version, step, len(raw.n), metrics, ks, curve, low, high)


def per_prompt(raw: Samples) -> tuple[tuple[int, ...], np.ndarray[Any, Any]]:
    """(ks, pass@k of each prompt as float64 (prompts, ks)), for k = 1, 2, 4, … up to the fewest samples of a prompt.

    Raises RecordError where a prompt has no judged sample.
    """
    fewest = min(raw.n)
    if fewest < 1:
        raise RecordError("an evaluated prompt has no judged sample; evaluate again")
    ks = tuple(1 << power for power in range(fewest.bit_length()))
    return ks, np.stack([pass_at_k(raw.n, raw.correct, k) for k in ks], axis=1)


def _summary_of(evaluated: Evaluation | None) -> dict[str, float | None] | None:
    if evaluated is None:
        return None
    names = [*(f"pass@{k}" for k in SUMMARY_KS), "distinct_correct"]
    return {name: round(evaluated.metrics[name], 5) if name in evaluated.metrics else None for name in names}


def _mean_over_groups(steps: list[StepRecord], name: str) -> float | None:
    """Mean of a step metric, each step weighted by its groups; None where no step has it."""
    known = [
        (float(getattr(step, name)), float(step.groups))
        for step in steps
        if getattr(step, name) is not None and step.groups
    ]
    total = sum(weight for _, weight in known)
    return round(sum(value * weight for value, weight in known) / total, 5) if total else None
