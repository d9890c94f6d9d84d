"""Statistics of evaluations with their uncertainty: pass@k, distinct answers, diversity, difficulty migration.

Several seeds of one setting give one estimate, whose interval is over prompts and seeds together. The estimators are
those of learner/evaluation/stats.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.rundir import run_files
from deploy.rundir.run_files import RecordError
from learner.difficulty import LEVELS, level
from learner.evaluation.stats import (
    KS,
    Estimate,
    PromptResult,
    bootstrap,
    bootstrap_difference,
    gini_simpson,
    migration,
    pass_at_k,
    per_prompt,
    shannon,
)

DIVERSITY: dict[str, Callable[[Sequence[str]], float]] = {"shannon": shannon, "gini_simpson": gini_simpson}


@dataclass(frozen=True)
class Counted:
    """The evaluation of one prompt, reduced to counts: of its samples, and of each distinct right answer."""

    prompt: int
    n: int
    """Judged samples."""
    answers: tuple[int, ...]
    """How often each distinct right answer came up, largest first."""

    @classmethod
    def of(cls, n: int, right: Sequence[str], prompt: int) -> Counted:
        """The counts of a prompt with the right answers `right` among `n` judged samples."""
        return cls(prompt, n, tuple(sorted(Counter(right).values(), reverse=True)))

    @property
    def correct(self) -> int:
        """Number of right samples."""
        return sum(self.answers)

    def result(self) -> PromptResult:
        """The same as learner.evaluation.stats takes it, with the places of the answers for their texts."""
        names = tuple(str(place) for place, times in enumerate(self.answers) for _ in range(times))
        return PromptResult(self.prompt, self.n, names)


def read(run: Path, version: int) -> list[Counted]:
    """The evaluation of `version` in the run directory `run`, by prompt. Raises RecordError where there is none."""
    path = run / "eval" / f"v{version:08d}.jsonl"
    if not path.exists():
        raise RecordError(f"{path}: no raw samples of this evaluation; run it again")
    found = []
    for record in run_files.lines(path):
        drawn = [(outcome, answer) for outcome, answer in record["samples"] if outcome != "error"]
        if drawn:
            right = [answer for outcome, answer in drawn if outcome == "pass"]
            found.append(Counted.of(len(drawn), right, int(record["prompt"])))
    if not found:
        raise RecordError(f"{path}: holds no judged sample; evaluate again")
    return found


def last_version(run: Path) -> int:
    """The newest evaluated version of a run. Raises RecordError without one."""
    evaluated = run_files.evaluations(run)
    if not evaluated:
        raise RecordError(f"{run / 'eval.jsonl'}: no evaluation is finished; continue with `sieve run CONFIG --resume`")
    return int(evaluated[-1]["version"])


def estimates(seeds: Sequence[Sequence[Counted]]) -> dict[str, Estimate]:
    """All statistics of one setting, with 95 % intervals; `seeds` holds an evaluation of the same prompts per seed.

    `pass@<k>` for every k of KS that all prompts have samples for; `distinct_correct`; `shannon` and `gini_simpson` of
    the right answers, over prompts with two or more; `share_<level>`, the share of prompts at each difficulty level.
    Raises RecordError where the prompts of the seeds differ.
    """
    table = [[counted.result() for counted in given] for given in seeds]
    if len({tuple(result.prompt for result in given) for given in table}) != 1:
        raise RecordError("evaluations of different prompts cannot be put together; evaluate all of them on the same")
    n = np.array([[result.samples for result in given] for given in table])
    c = np.array([[result.correct for result in given] for given in table])
    found = {f"pass@{k}": bootstrap(pass_at_k(n, c, k)) for k in KS if k <= n.min()}
    found["distinct_correct"] = bootstrap([[len(counted.answers) for counted in given] for given in seeds])
    for name, index in DIVERSITY.items():
        values = [
            per_prompt(given, lambda r, index=index: index(r.answers) if r.correct > 1 else np.nan)  # type: ignore[misc]
            for given in table
        ]
        known = np.isfinite(values).any(0)
        # Seeds differ in which prompts have two right answers: average the seeds of a prompt before the bootstrap.
        found[name] = bootstrap(np.nanmean(np.array(values)[:, known], 0)) if known.any() else Estimate(0.0, 0.0, 0.0)
    levels = np.array([[level(counted.n, counted.correct) for counted in given] for given in seeds])
    return found | {f"share_{name}": bootstrap((levels == name).astype(float)) for name in LEVELS}


def difference(after: Sequence[Sequence[Counted]], before: Sequence[Sequence[Counted]], k: int) -> Estimate:
    """Difference of pass@k, `after` minus `before`, paired by prompt and seed, with its 95 % interval."""

    def rates(seeds: Sequence[Sequence[Counted]]) -> Any:
        n = [[counted.n for counted in given] for given in seeds]
        return pass_at_k(n, [[counted.correct for counted in given] for given in seeds], k)

    return bootstrap_difference(rates(after), rates(before))


def migrations(before: Sequence[Sequence[Counted]], after: Sequence[Sequence[Counted]]) -> dict[str, dict[str, float]]:
    """Number of prompts that moved from one level to another, level before → level after → mean over paired seeds."""
    total = {origin: dict.fromkeys(LEVELS, 0.0) for origin in LEVELS}
    pairs = list(zip(before, after, strict=True))
    for first, second in pairs:
        moved = migration([counted.result() for counted in first], [counted.result() for counted in second])
        for origin, row in moved.items():
            for end, count in row.items():
                total[origin][end] += count / len(pairs)
    return total


def plain(found: dict[str, Estimate]) -> dict[str, Any]:
    """Estimates as JSON: name → [mean, low, high]."""
    return {name: [round(e.mean, 6), round(e.low, 6), round(e.high, 6)] for name, e in found.items()}
