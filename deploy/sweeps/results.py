"""The results of a sweep in one file, results.json: all that its tables and pictures are made of.

It has, per run and prompt, the number of samples and how often each different right answer was given. All metrics are
computed from these counts, so that a committed file lets anybody check or redraw the report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.reports import eval_stats
from deploy.reports.eval_stats import Counted
from deploy.rundir import run_files
from deploy.rundir.run_files import RecordError
from deploy.rundir.schema import check_schema
from deploy.sweeps.plan import BASE
from deploy.sweeps.runner import MANIFEST, read_manifest

SCHEMA = 1
CURVES = (
    "pass_rate", "entropy", "response_length", "ess_rho", "ess_rho_alpha", "ess_weight", "mean_r", "staleness_mean",
    "grad_norm", "clipped_share", "truncated_share",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """The runs of one point, one per seed; `point` is None for the base model."""

    key: str
    point: dict[str, Any] | None
    seeds: list[int]
    evaluations: list[list[Counted]]
    """One per seed, of the same prompts."""
    curves: list[dict[str, list[float | None]]]
    """Per seed: columns of metrics.jsonl, one value per step."""
    seconds: list[float]


@dataclass(frozen=True)
class Results:
    """The results of a sweep: the base model, and the points in the order of the manifest."""

    raw: dict[str, Any]
    base: Outcome
    points: list[Outcome]

    @property
    def title(self) -> str:
        return str(self.raw["name"])

    @property
    def is_study(self) -> bool:
        """Whether staleness was forced: a study of staleness, not of objectives."""
        return any(outcome.point is not None and outcome.point["staleness"] is not None for outcome in self.points)

    def base_of(self, outcome: Outcome) -> list[list[Counted]]:
        """The base model's evaluations with the seeds of `outcome`. Raises RecordError where one is missing."""
        by_seed = dict(zip(self.base.seeds, self.base.evaluations, strict=True))
        missing = [seed for seed in outcome.seeds if seed not in by_seed]
        if missing:
            raise RecordError(f"{self.title}: the base was not evaluated with seed {missing[0]}; run the sweep again")
        return [by_seed[seed] for seed in outcome.seeds]


def is_sweep(path: Path) -> bool:
    """Whether `path` is a sweep's directory or a results.json."""
    return (path / MANIFEST).is_file() or (path.is_file() and path.name.endswith("results.json"))


def collect(directory: Path) -> dict[str, Any]:
    """The content of results.json from a sweep's directory: its finished runs. Raises RecordError where a file of the
    sweep cannot be read."""
    manifest = read_manifest(directory)
    steps = int(manifest["settings"]["schedule"]["steps"])
    runs = []
    for planned in manifest["runs"]:
        path = directory / planned["name"]
        check_schema(path)
        wanted = steps if planned["point"] else 0
        evaluated = run_files.evaluations(path)
        if not evaluated or int(evaluated[-1]["step"]) != wanted:
            continue
        version = int(evaluated[-1]["version"])
        trained = run_files.steps(path)
        runs.append(
            planned
            | {
                "seconds": round(run_files.wall_seconds(path) or 0.0, 1),
                "version": version,
                "prompts": [[c.prompt, c.n, list(c.answers)] for c in eval_stats.read(path, version)],
                "curves": {name: [_round(getattr(step, name)) for step in trained] for name in CURVES if trained},
            }
        )
    return {
        "schema": SCHEMA,
        "name": manifest["name"],
        "commands": manifest["commands"],
        "machine": manifest["machine"],
        "settings": _described(manifest["settings"]),
        "unfinished": [run["name"] for run in manifest["runs"] if run["name"] not in {done["name"] for done in runs}],
        "runs": runs,
    }


def load(source: Path) -> Results:
    """The results in a sweep's directory or a results.json.

    Raises RecordError where they cannot be read, are of another schema, or hold no finished run beside the base.
    """
    if source.is_dir():
        raw = collect(source)
    else:
        try:
            with run_files.opened(source) as file:
                raw = json.load(file)
        except (OSError, ValueError, RecursionError):
            raise RecordError(f"{source}: cannot be read as JSON; write it with `sieve report SWEEP_DIR`") from None
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            raise RecordError(f"{source}: not of schema {SCHEMA}; make it again with `sieve report SWEEP_DIR`")
    grouped: dict[str, list[dict[str, Any]]] = {}
    for run in raw["runs"]:
        grouped.setdefault(run["point"]["key"] if run["point"] else BASE, []).append(run)
    if BASE not in grouped or len(grouped) < 2:
        raise RecordError(f"{source}: no run beside the base is finished yet; `sieve sweep` continues it")
    found = [_outcome(key, runs) for key, runs in grouped.items()]
    base = next(outcome for outcome in found if outcome.point is None)
    return Results(raw, base, [outcome for outcome in found if outcome.point is not None])


def _outcome(key: str, runs: Sequence[dict[str, Any]]) -> Outcome:
    return Outcome(
        key=key,
        point=runs[0]["point"],
        seeds=[int(run["seed"]) for run in runs],
        evaluations=[[Counted(prompt, n, tuple(answers)) for prompt, n, answers in run["prompts"]] for run in runs],
        curves=[run["curves"] for run in runs],
        seconds=[float(run["seconds"]) for run in runs],
    )


def _round(value: Any) -> float | None:
    """The value with four significant digits, which a plot cannot tell from more; None where it is not finite."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def _described(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that describe the runs, without paths of this machine."""
    kept = {name: settings[name] for name in ("sampling", "schedule", "evaluation", "learner")}
    kept["model"] = {"path": Path(settings["model"]["path"]).name, "dtype": settings["model"]["dtype"]}
    kept["data"] = {
        name: Path(str(settings["data"][name])).name for name in ("train", "eval") if settings["data"].get(name)
    }
    return kept
