"""The partition function Z_x = P_{y~π_b}(v = 1), the base pass rate of each prompt, from all verified samples so far.

Z depends on prompt, base model and verifier only, so it never goes stale: a sample of any behaviour policy μ that
covers the target contributes w = v·π_b/μ with E_μ[w] = Z. Kept per prompt: count, Σw, Σw². Invariants:

- The estimate used for a sample never contains that sample: E[f(w_i)/Ẑ] would otherwise be biased, and with a small
  group a lone right answer would cancel its own weight.
- Ẑ lies in [floor, 1].
- Statistics add: merging two runs, two ranks or two visits is a sum, in any order.

Numbers only: no torch, no I/O. The broker and checkpoints store 25 bytes per prompt.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from broker.settings import Section

Floats = NDArray[np.float64]
_RECORD = struct.Struct("<Bqdd")
_SCHEMA = 1
_FEWEST_TO_FIT = 8
"""Prompts below which the prior's strength is not fitted."""
_STRENGTH_RANGE = (0.5, 20.0)
"""A fitted prior weighs at least half a sample and at most twenty, so that no prompt is drowned by the others."""
_VARIANCE_PRIOR = 4.0
"""Samples' worth of Bernoulli variance mixed into a prompt's own: a variance from two or three weights is no
knowledge."""


class PartitionSettings(Section):
    """How Ẑ is estimated."""

    mode: Literal["pooled", "group", "fixed"] = "pooled"
    """`pooled`: all visits plus the group's other samples. `group`: the group's own mean, itself included (the
    paper's released practice; biased for small groups). `fixed`: the pass rates that came with the training
    prompts, in the column `data.columns.pass_rate`."""
    floor: Annotated[float, Field(gt=0, le=0.1)] = 1e-3
    """ε: smallest Ẑ; 1/ε bounds p/π_b."""
    largest_weight: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = 10.0
    """w = v·π_b/μ is truncated here: one sample of a drifted policy would otherwise own its prompt's Ẑ. A bias
    toward smaller Ẑ of at most P(w > limit)-mass; null does not truncate."""
    prior_mean: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Mean of the Beta prior; null: the mean of the other prompts (empirical Bayes)."""
    prior_strength: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] | None = None
    """The prior's weight in samples; null: fitted to the spread between prompts, 1 until there are enough of
    them."""


@dataclass(frozen=True)
class Statistics:
    """The statistics of one prompt: number of samples, Σw and Σw²."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(self.count + other.count, self.total + other.total, self.squares + other.squares)

    def pack(self) -> bytes:
        """25 bytes: schema, count, Σw, Σw², little-endian."""
        return _RECORD.pack(_SCHEMA, self.count, self.total, self.squares)

    @staticmethod
    def unpack(data: bytes) -> Statistics:
        """Raises ValueError when `data` is not what `pack` wrote."""
        if len(data) != _RECORD.size or data[0] != _SCHEMA:
            raise ValueError(
                f"Z statistics of {len(data)} bytes and schema {data[0] if data else 'none'}; expected {_RECORD.size} "
                f"bytes of schema {_SCHEMA}: they were written by another release, drop them to start Ẑ afresh"
            )
        _, count, total, squares = _RECORD.unpack(data)
        if count < 0 or not (0 <= total < math.inf) or not (0 <= squares < math.inf):
            raise ValueError(f"Z statistics count {count}, Σw {total}, Σw² {squares}: all must be finite and ≥ 0")
        return Statistics(count, total, squares)

    @staticmethod
    def of(weights: Iterable[float]) -> Statistics:
        """Statistics of the given w."""
        array = np.asarray(list(weights), dtype=np.float64)
        return Statistics(len(array), float(array.sum()), float((array**2).sum()))


def importance_weights(
    log_base: NDArray[Any], log_sampler: NDArray[Any], passed: NDArray[np.bool_], largest: float | None
) -> Floats:
    """w = v·π_b(y)/μ(y), truncated at `largest`; sequence log-probabilities (N,) in, (N,) float64 out."""
    log_ratio = np.asarray(log_base, dtype=np.float64) - np.asarray(log_sampler, dtype=np.float64)
    # e^300 and its square sum are far from the end of float64's range even over a million samples.
    limit = 300.0 if largest is None else math.log(largest)
    return np.where(passed, np.exp(np.minimum(log_ratio, limit)), 0.0)


class PartitionFunction:
    """Ẑ of every prompt. `log_z` for a batch first, then `observe` the same batch."""

    def __init__(self, settings: PartitionSettings, fixed: Mapping[int, float] | None = None) -> None:
        """`fixed`: prompt -> base pass rate, required by mode `fixed`."""
        if settings.mode == "fixed" and not fixed:
            raise ValueError(
                "learner.partition.mode = fixed needs a base pass rate with every prompt and there is none: "
                "add them to the prompts' file as data.columns.pass_rate, or use mode pooled"
            )
        for prompt, rate in (fixed or {}).items():
            if not 0 <= rate <= 1:
                raise ValueError(f"prompt {prompt} has base pass rate {rate}; it must be within 0 … 1")
        self.settings = settings
        self._fixed = dict(fixed or {})
        self._known: dict[int, Statistics] = {}
        self._sum = Statistics()
        self._fitted: float | None = None

    # --- what is known

    def observe(self, prompts: NDArray[np.int64], weights: Floats) -> None:
        """Add the samples of a batch; (N,) prompt indices and (N,) w."""
        for prompt, found in _by_prompt(prompts, weights).items():
            self._add(prompt, found)

    def observe_base(self, prompt: int, samples: int, passes: int) -> None:
        """Add `samples` draws from the base model itself, of which `passes` were right (there w = v)."""
        if not 0 <= passes <= samples:
            raise ValueError(f"{passes} passes of {samples} base samples of prompt {prompt}")
        self._add(prompt, Statistics(samples, float(passes), float(passes)))

    def _add(self, prompt: int, more: Statistics) -> None:
        self._known[prompt] = self.statistics(prompt) + more
        self._sum += more
        self._fitted = None

    def statistics(self, prompt: int) -> Statistics:
        """What is known of `prompt`; empty when it was never visited."""
        return self._known.get(prompt, Statistics())

    def pack(self, prompts: Iterable[int] | None = None) -> dict[int, bytes]:
        """Statistics as bytes, of the given prompts or of all: what the broker and checkpoints store."""
        chosen = (
            self._known if prompts is None else [prompt for prompt in dict.fromkeys(prompts) if prompt in self._known]
        )
        return {int(prompt): self._known[prompt].pack() for prompt in chosen}

    def load(self, packed: Mapping[int, bytes]) -> None:
        """Replace everything known by what `pack` gave. Raises ValueError naming the prompt that cannot be read."""
        known: dict[int, Statistics] = {}
        for prompt, data in packed.items():
            try:
                known[prompt] = Statistics.unpack(data)
            except ValueError as error:
                raise ValueError(f"prompt {prompt}: {error}") from None
        self._known = known
        self._sum = sum(known.values(), Statistics())
        self._fitted = None

    # --- estimates

    def log_z(self, prompts: NDArray[np.int64], weights: Floats) -> NDArray[np.float32]:
        """log Ẑ for each sample of a batch of whole groups; (N,) prompt indices and w in, (N,) float32 out.

            pooled    Ẑ_i = (Σw − w_i + s·m) / (count − 1 + s)

        over the prompt's samples of earlier visits and of this batch; prior mean m and strength s.
        """
        mode, floor = self.settings.mode, self.settings.floor
        if mode == "fixed":
            missing = sorted({int(p) for p in prompts} - self._fixed.keys())
            if missing:
                raise ValueError(
                    f"{len(missing)} prompts have no base pass rate, {missing[:5]} first: add them to the prompts' file"
                )
            z = np.array([self._fixed[int(p)] for p in prompts], dtype=np.float64)
            return np.log(np.clip(z, floor, 1)).astype(np.float32)
        batch = _by_prompt(prompts, weights)
        if mode == "group":
            z = np.array([batch[int(p)].total / batch[int(p)].count for p in prompts], dtype=np.float64)
            return np.log(np.clip(z, floor, 1)).astype(np.float32)
        everything = self._sum + sum(batch.values(), Statistics())
        strength = self._prior_strength()
        z = np.empty(len(prompts), dtype=np.float64)
        for prompt, found in batch.items():
            rows = np.flatnonzero(prompts == prompt)
            own = np.asarray(weights, dtype=np.float64)[rows]
            known = self.statistics(prompt)
            others = known.total + _exclusive_sums(own)
            count = known.count + len(rows) - 1
            mine = known + found
            mean = self._prior_means(everything, np.array([mine.count]), np.array([mine.total]))[0]
            # Nothing known and no prior: one half is the only estimate that prefers neither outcome.
            z[rows] = (others + strength * mean) / (count + strength) if count + strength > 0 else 0.5
        return np.log(np.clip(z, floor, 1)).astype(np.float32)

    def z(self, prompt: int) -> float:
        """Ẑ from all that is known, clamped to [floor, 1]."""
        return float(np.clip(self._estimates([prompt])[0], self.settings.floor, 1))

    def interval(self, prompt: int, score: float = 1.96) -> tuple[float, float]:
        """Wilson confidence interval of Z, `score` standard errors wide (1.96: 95 %), within [0, 1].

        Its sample size is the number of base samples that would give the variance that Σw² shows: samples of a policy
        near the target say more than as many base samples, samples of a drifted policy say less. It covers as stated
        for samples of the base and of policies near it or the target; a policy that has nearly forgotten some right
        answers shows no sign of them until it draws one, and the interval then ends too low.
        """
        low, high = self._intervals([prompt], score)
        return float(low[0]), float(high[0])

    def summary(self) -> dict[str, float]:
        """`z_mean` over known prompts, `z_prompts` and `z_narrow_share`: 95 % interval within a factor of two."""
        prompts = list(self._fixed if self.settings.mode == "fixed" else self._known)
        if not prompts:
            return {"z_mean": 0.0, "z_prompts": 0.0, "z_narrow_share": 0.0}
        low, high = self._intervals(prompts)
        return {
            "z_mean": float(np.clip(self._estimates(prompts), self.settings.floor, 1).mean()),
            "z_prompts": float(len(prompts)),
            "z_narrow_share": float((high <= 2 * low).mean()),
        }

    def _columns(self, prompts: list[int]) -> tuple[Floats, Floats, Floats]:
        """count, Σw and Σw² of each prompt; (P,) each."""
        rows = [self.statistics(prompt) for prompt in prompts]
        table = np.array([(row.count, row.total, row.squares) for row in rows], dtype=np.float64).reshape(-1, 3)
        return table[:, 0], table[:, 1], table[:, 2]

    def _estimates(self, prompts: list[int]) -> Floats:
        """(Σw + s·m) / (count + s) of each prompt, not clamped; (P,)."""
        if self.settings.mode == "fixed":
            return np.array([self._fixed[prompt] for prompt in prompts], dtype=np.float64)
        count, total, _ = self._columns(prompts)
        strength = self._prior_strength()
        means = self._prior_means(self._sum, count, total)
        weight = count + strength
        return np.where(weight > 0, (total + strength * means) / np.where(weight > 0, weight, 1), 0.5)

    def _intervals(self, prompts: list[int], score: float = 1.96) -> tuple[Floats, Floats]:
        z = np.minimum(self._estimates(prompts), 1.0)
        if self.settings.mode == "fixed":
            return z, z
        n = _effective_counts(*self._columns(prompts)) + self._prior_strength()
        known = np.maximum(n, 1e-9)
        centre = z + score**2 / (2 * known)
        half = score * np.sqrt(z * (1 - z) / known + score**2 / (4 * known**2))
        scale = 1 + score**2 / known
        low = np.where(n > 0, np.maximum((centre - half) / scale, 0), 0.0)
        return low, np.where(n > 0, np.minimum((centre + half) / scale, 1), 1.0)

    # --- the prior

    def _prior_means(self, everything: Statistics, count: Floats, total: Floats) -> Floats:
        """The prior's mean for prompts of the given count and Σw: what is left of `everything`, the other prompts."""
        if self.settings.prior_mean is not None:
            return np.full(len(count), self.settings.prior_mean)
        others = everything.count - count
        means = np.where(others > 0, (everything.total - total) / np.maximum(others, 1), 0.5)
        return np.clip(means, self.settings.floor, 1 - self.settings.floor)

    def _prior_strength(self) -> float:
        """s of Beta(s·m, s·(1−m)) by moments of the beta-binomial (Kleinman 1973), from earlier visits only."""
        if self.settings.prior_strength is not None:
            return self.settings.prior_strength
        if self._fitted is None:
            self._fitted = self._fit_strength()
        return self._fitted

    def _fit_strength(self) -> float:
        known = [s for s in self._known.values() if s.count >= 2]
        if len(known) < _FEWEST_TO_FIT:
            return 1.0
        count = np.array([s.count for s in known], dtype=np.float64)
        rate = np.clip(np.array([s.total for s in known]) / count, 0, 1)
        mean = float((rate * count).sum() / count.sum())
        spread = float((count * (rate - mean) ** 2).sum() / count.sum())
        within = float((count * rate * (1 - rate) / (count - 1)).sum() / count.sum())
        between = spread - within
        low, high = _STRENGTH_RANGE
        if between <= 0:
            return high
        return min(max(mean * (1 - mean) / between - 1, low), high)


def _effective_counts(count: Floats, total: Floats, squares: Floats) -> Floats:
    """Base samples that would know Z as well; (P,). The count itself where the weights' own variance says nothing."""
    n = np.maximum(count, 2)
    mean = total / n
    variance = np.maximum(squares - n * mean**2, 0) / (n - 1)
    bernoulli = np.minimum(mean, 1) * (1 - np.minimum(mean, 1))
    # Constant weights have no variance, but a failure may simply not have been seen yet.
    informative = (count >= 2) & (bernoulli > 0) & (variance > 1e-12 * np.maximum(mean, 1e-6) ** 2)
    ratio = variance / np.where(bernoulli > 0, bernoulli, 1)
    return np.where(informative, n * (n + _VARIANCE_PRIOR) / (n * ratio + _VARIANCE_PRIOR), count)


def _by_prompt(prompts: NDArray[np.int64], weights: Floats) -> dict[int, Statistics]:
    if len(prompts) != len(weights):
        raise ValueError(f"{len(prompts)} prompts against {len(weights)} weights")
    unique, inverse = np.unique(np.asarray(prompts, dtype=np.int64), return_inverse=True)
    w = np.asarray(weights, dtype=np.float64)
    if not np.isfinite(w).all() or (w < 0).any():
        raise ValueError("importance weights must be finite and ≥ 0")
    count = np.bincount(inverse, minlength=len(unique))
    total = np.bincount(inverse, w, minlength=len(unique))
    squares = np.bincount(inverse, w * w, minlength=len(unique))
    return {
        int(p): Statistics(int(c), float(t), float(q)) for p, c, t, q in zip(unique, count, total, squares, strict=True)
    }


def _exclusive_sums(values: Floats) -> Floats:
    """Sum of all entries but one's own. Prefix plus suffix: one huge weight must not cancel the small ones away."""
    before = np.concatenate([[0.0], np.cumsum(values)[:-1]])
    after = np.concatenate([np.cumsum(values[::-1])[::-1][1:], [0.0]])
    sums: Floats = before + after
    return sums
