"""The results of one run, read from its files: figures of base and tuned model, and the account of its groups.

The figures are recomputed from the raw samples where the run kept them; eval.jsonl stands in where it did not, and a
disagreement between the two is an error. Reads files only, so it works on a finished, a stopped and a running run.
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

SUMMARY_KS = (1, 16, 64, 128)
TOLERANCE = 1e-4
"""eval.jsonl may round; more than this is a contradiction."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluated version: figures by name, and the pass@k curve with its bootstrap interval."""

    version: int
    step: int
    prompts: int
    figures: dict[str, float]
    ks: tuple[int, ...]
    curve: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    """95 % bootstrap interval over prompts; the curve itself where no raw samples are there."""


@dataclass(frozen=True)
class Report:
    """Everything that is shown, from one reading of the run directory."""

    summary: dict[str, Any]
    base: Evaluation | None
    tuned: Evaluation | None
    steps: list[dict[str, Any]]


def build(run: Path, audit: dict[str, Any] | None = None) -> Report:
    """Read a run directory. `audit` is the broker's live count; the one saved at the end of the run stands in for it.

    Raises RecordError when nothing was trained yet or the files contradict each other.
    """
    check_schema(run)
    steps = run_files.steps(run)
    evaluated = run_files.evaluations(run)
    if not steps and not evaluated:
        raise RecordError(
            f"{run}: has neither metrics.jsonl nor eval.jsonl yet, so there is nothing to report; start `sieve run`"
        )
    audit = audit if audit is not None else run_files.audit(run)
    base = next((evaluation(run, record) for record in evaluated if record["version"] == 0), None)
    tuned = evaluation(run, evaluated[-1]) if evaluated and evaluated[-1]["version"] > 0 else None
    wall = run_files.wall_seconds(run)
    if wall is None and steps:
        wall = steps[-1]["time"] - steps[0]["time"]
    counted = audit or {}
    summary = {
        "base": _summary(base),
        "tuned": _summary(tuned),
        "wall_seconds": None if wall is None else round(wall, 1),
        "groups_trained": counted.get("committed", sum(int(record.get("groups", 0)) for record in steps)),
        "completions": counted.get("completions", sum(int(record["completions"]) for record in steps)),
        # Only the broker knows these two: without its count they are unknown, not zero.
        "duplicates": counted.get("duplicates"),
        "lost": counted.get("lost"),
        "staleness_mean": _weighted(steps, "staleness_mean"),
        "ess_mean": _weighted(steps, "ess_rho_alpha"),
    }
    return Report(summary, base, tuned, steps)


def evaluation(run: Path, record: dict[str, Any]) -> Evaluation:
    """One line of eval.jsonl with its curve, recomputed from the raw samples where there are any."""
    version = int(record["version"])
    said = {
        name: float(value) for name, value in record.items() if name.startswith("pass@") or name == "distinct_correct"
    }
    raw = run_files.samples(run, version)
    if raw is None or not raw.n:
        ks = tuple(sorted(int(name[5:]) for name in said if name.startswith("pass@")))
        curve = tuple(said[f"pass@{k}"] for k in ks)
        return Evaluation(version, int(record["step"]), int(record["prompts"]), said, ks, curve, curve, curve)
    ks, each = per_prompt(raw)
    curve = tuple(float(value) for value in each.mean(axis=0))
    figures = {f"pass@{k}": value for k, value in zip(ks, curve, strict=True)}
    figures["distinct_correct"] = float(np.mean(raw.distinct))
    for name in sorted(said.keys() & figures.keys()):
        if abs(said[name] - figures[name]) > TOLERANCE:
            raise RecordError(
                f"{run / 'eval.jsonl'}: version {version} says {name} = {said[name]:.5f}, its raw samples give "
                f"{figures[name]:.5f} "
                f"(limit {TOLERANCE}); one of the two files was changed: evaluate again"
            )
    bounds = [bootstrap(column) for column in each.T]
    low, high = tuple(bound.low for bound in bounds), tuple(bound.high for bound in bounds)
    return Evaluation(version, int(record["step"]), len(raw.n), figures, ks, curve, low, high)


def per_prompt(raw: Samples) -> tuple[tuple[int, ...], np.ndarray[Any, Any]]:
    """k = 1, 2, 4, … up to the samples every prompt has, and pass@k of each prompt: float64, (prompts, ks)."""
    least = min(raw.n)
    if least < 1:
        raise RecordError("an evaluated prompt has no judged sample at all; evaluate again")
    ks = tuple(1 << power for power in range(least.bit_length()))
    return ks, np.stack([pass_at_k(raw.n, raw.correct, k) for k in ks], axis=1)


def _summary(found: Evaluation | None) -> dict[str, float | None] | None:
    if found is None:
        return None
    names = [*(f"pass@{k}" for k in SUMMARY_KS), "distinct_correct"]
    return {name: round(found.figures[name], 5) if name in found.figures else None for name in names}


def _weighted(steps: list[dict[str, Any]], name: str) -> float | None:
    """Mean over steps, each counted by its groups."""
    known = [
        (float(step[name]), float(step["groups"]))
        for step in steps
        if step.get(name) is not None and step.get("groups")
    ]
    total = sum(weight for _, weight in known)
    return round(sum(value * weight for value, weight in known) / total, 5) if total else None
