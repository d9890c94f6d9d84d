"""The mathematics of evaluation: pass@k, confidence, distinct answers, diversity, migration. Numbers only, no I/O.

A prompt's result is how many samples were drawn and the canonical answer of every right one. Everything is computed
from those, so anybody can recompute a table from the raw samples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from learner.difficulty import LEVELS, level

Floats = NDArray[np.float64]
KS: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class PromptResult:
    """One prompt's evaluation: samples drawn and judged, and the canonical answer of each right one, repeats
    included."""

    prompt: int
    samples: int
    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.samples < 1 or len(self.answers) > self.samples:
            raise ValueError(f"prompt {self.prompt}: {len(self.answers)} right answers of {self.samples} samples")

    @property
    def correct(self) -> int:
        return len(self.answers)


def pass_at_k(samples: ArrayLike, correct: ArrayLike, k: int) -> Floats:
    """Unbiased pass@k = 1 − C(n−c, k) / C(n, k), elementwise; float64 (Chen et al., arXiv 2107.03374).

    Raises ValueError when k < 1 or some n < k: fewer than k samples give no unbiased estimate.
    """
    n = np.asarray(samples, dtype=np.int64)
    c = np.asarray(correct, dtype=np.int64)
    if k < 1 or (n < k).any():
        raise ValueError(f"pass@{k} needs 1 ≤ k ≤ samples; the fewest samples of a prompt are {int(n.min(initial=0))}")
    if (c < 0).any() or (c > n).any():
        raise ValueError("right answers must be between 0 and the number of samples")
    missed = _log_choose(n - c, k) - _log_choose(n, k)
    return np.where(n - c < k, 1.0, -np.expm1(missed))


def _log_choose(n: NDArray[np.int64], k: int) -> Floats:
    """log C(n, k) for n ≥ k; anything finite below (the caller replaces it)."""
    safe = np.maximum(n, k)
    table = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, int(safe.max(initial=1)) + 1)))])
    result: Floats = table[safe] - table[k] - table[safe - k]
    return result


@dataclass(frozen=True)
class Estimate:
    """A mean with its bootstrap percentile interval."""

    mean: float
    low: float
    high: float


def bootstrap(values: ArrayLike, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """Mean of per-prompt values with a confidence interval over problems and, when there are several, seeds.

    `values`: (P,) for one run or (S, P) for S seeds on the same P problems. Each resample draws problems with
    replacement and, independently, seeds: both are samples of a population. Efron & Tibshirani
    1993.
    """
    array = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if array.ndim != 2 or array.size == 0:
        raise ValueError(
            f"values have shape {np.shape(values)}; (problems,) or (seeds, problems) with at least one of each"
        )
    seeds, problems = array.shape
    rows, columns = _multiplicities(seeds, problems, resamples, seed)
    means = np.empty(resamples)
    for start in range(0, resamples, 256):  # the float copy of the counts stays small for any number of problems
        part = slice(start, start + 256)
        means[part] = ((columns[part].astype(np.float64) @ array.T) * rows[part]).sum(1) / (seeds * problems)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(array.mean()), float(low), float(high))


@lru_cache(maxsize=4)
def _multiplicities(seeds: int, problems: int, resamples: int, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """How often each resample has each seed (R, S) and each problem (R, P): the same for every figure of a report."""
    random = np.random.default_rng(seed)
    narrow = np.min_scalar_type(max(seeds, problems))
    rows = np.empty((resamples, seeds), narrow)
    columns = np.empty((resamples, problems), narrow)
    for index in range(resamples):
        rows[index] = np.bincount(random.integers(seeds, size=seeds), minlength=seeds)
        columns[index] = np.bincount(random.integers(problems, size=problems), minlength=problems)
    return rows, columns


def bootstrap_difference(after: ArrayLike, before: ArrayLike, **options: Any) -> Estimate:
    """Mean of after − before on the same problems (and seeds): paired, so the problems' own difficulty cancels."""
    left, right = np.asarray(after, dtype=np.float64), np.asarray(before, dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(f"shapes {left.shape} and {right.shape}; a paired difference needs the same problems")
    return bootstrap(left - right, **options)


def distinct(answers: Iterable[str]) -> int:
    """How many different right answers."""
    return len(set(answers))


def distinct_at_k(samples: int, answers: Sequence[str], k: int) -> float:
    """Expected number of different right answers among k of the samples: Σ_a 1 − C(n−n_a, k)/C(n, k)
    (rarefaction)."""
    counts = list(Counter(answers).values())
    return float(pass_at_k(np.full(len(counts), samples), counts, k).sum()) if counts else 0.0


def shannon(answers: Iterable[str]) -> float:
    """Shannon entropy −Σ p_a log p_a over right answers, nats, plug-in (low by about (kinds−1)/2N); 0 without
    any."""
    counts = np.array(list(Counter(answers).values()), dtype=np.float64)
    if not len(counts):
        return 0.0
    share = counts / counts.sum()
    return max(0.0, float(-(share * np.log(share)).sum()))


def gini_simpson(answers: Iterable[str]) -> float:
    """Chance that two right answers drawn without replacement differ: 1 − Σ n_a(n_a−1) / N(N−1); unbiased; 0 if N <
    2."""
    counts = np.array(list(Counter(answers).values()), dtype=np.float64)
    total = counts.sum()
    return 0.0 if total < 2 else float(1 - (counts * (counts - 1)).sum() / (total * (total - 1)))


def migration(before: Sequence[PromptResult], after: Sequence[PromptResult]) -> dict[str, dict[str, int]]:
    """How many prompts went from each level (outer key) to each level (inner key)."""
    later = {result.prompt: result for result in after}
    if later.keys() != {result.prompt for result in before} or len(later) != len(before):
        raise ValueError("difficulty migration needs the same prompts before and after, each once")
    table = {origin: dict.fromkeys(LEVELS, 0) for origin in LEVELS}
    for result in before:
        end = later[result.prompt]
        table[level(result.samples, result.correct)][level(end.samples, end.correct)] += 1
    return table


def perplexity(log_probabilities: float, tokens: int) -> float:
    """exp(−Σ log π_b / tokens) of the outputs under the base model; Σ in nats over all their tokens."""
    if tokens < 1:
        raise ValueError(f"perplexity of {tokens} tokens")
    return math.exp(-log_probabilities / tokens)


def per_prompt(results: Sequence[PromptResult], measure: Callable[[PromptResult], float]) -> Floats:
    """`measure` of each result; (P,) float64, ready for `bootstrap`."""
    return np.array([measure(result) for result in results], dtype=np.float64)


def summarise(results: Sequence[PromptResult], ks: Sequence[int] = KS) -> dict[str, float]:
    """One evaluation as flat numbers: `pass@k` for every k ≤ the fewest samples of a prompt, `distinct_correct`,
    `shannon`, `gini_simpson` (means over prompts; diversity over prompts with two right answers or more) and the
    count of prompts at each level. Raises ValueError without results."""
    if not results:
        raise ValueError("an evaluation without prompts has no summary")
    n = np.array([result.samples for result in results])
    c = np.array([result.correct for result in results])
    numbers: dict[str, float] = {"prompts": float(len(results)), "samples": float(n.min())}
    for k in ks:
        if k <= n.min():
            numbers[f"pass@{k}"] = float(pass_at_k(n, c, k).mean())
    several = [result.answers for result in results if result.correct >= 2]
    numbers["distinct_correct"] = float(np.mean([distinct(result.answers) for result in results]))
    numbers["shannon"] = float(np.mean([shannon(answers) for answers in several])) if several else 0.0
    numbers["gini_simpson"] = float(np.mean([gini_simpson(answers) for answers in several])) if several else 0.0
    levels = Counter(level(result.samples, result.correct) for result in results)
    return numbers | {name: float(levels[name]) for name in LEVELS}
