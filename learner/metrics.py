"""What a step tells: one line of metrics.jsonl and the Prometheus series. Changes nothing in the step itself.

Figures are of the whole step over all ranks. Shares are 0–1, log-probabilities and entropies in nats, times in seconds.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from learner.objective.diagnostics import BUCKETS, DIFFICULTIES
from learner.objective.registry import Objective
from learner.objective.sequences import Sequences
from learner.ranks import Ranks
from learner.train.partition import PartitionFunction
from learner.train.step import Report, join

PARTS = ("waiting", "base", "backward", "publish", "checkpoint")
STALENESS_EDGES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
DIVERGENCES = ("forward_kl", "alpha_divergence", "jensen_shannon", "total_variation")
LEVELS = frozenset(name for name, _, _ in DIFFICULTIES)


def whole_step(ranks: Ranks, report: Report) -> Sequences | None:
    """All sequences of the step on rank 0 (on the CPU), None on the others or when there are none. Collective."""
    mine = [{item.name: getattr(part, item.name).cpu() for item in fields(Sequences)} for part in report.sequences]
    parts = [Sequences(**part) for rank in ranks.gather_first(mine) for part in rank]
    return join(parts) if parts else None


def figures(
    sequences: Sequences | None,
    report: Report,
    objective: Objective,
    *,
    step: int,
    version: int,
    progress: float,
    current: bool,
) -> dict[str, Any]:
    """One line of metrics.jsonl.

    The mismatch is taken over the freshest samples of the step, `mismatch_staleness` versions old. At 0 it is pure
    sampler–learner disagreement and must vanish up to rounding; above 0 it also holds what those versions learned,
    stays level while weights arrive, and grows without end when they do not. `current`: the weights trained from were
    those of `version`; otherwise no sample of this step is exactly current.
    """
    line: dict[str, Any] = {
        "step": step, "version": version, "time": time.time(), "loss": report.loss, "grad_norm": report.grad_norm,
        "lr": report.lr, "refused": report.refused, "completions": report.completions,
    }  # fmt: skip
    if sequences is None:
        return line
    found = {name: float(value) for name, value in objective(sequences, progress).diagnostics.items()}
    lengths = sequences.tokens
    tokens = float(lengths.sum())
    age = int(sequences.staleness.min())
    freshest = sequences.staleness == age
    gap = sequences.token_log_rho.abs()[freshest]
    line |= {
        **{name: value for name, value in found.items() if "/" not in name},
        "z_mean": float(sequences.log_z.exp().mean()),
        "staleness_mean": float(sequences.staleness.float().mean()),
        "staleness_max": int(sequences.staleness.max()),
        "mismatch_mean": float(gap.sum()) / float(sequences.mask[freshest].sum()),
        "mismatch_max": float(gap.max()),
        "mismatch_staleness": age if current else age + 1,
        "groups": len(set(sequences.group.tolist())),
        "tokens": int(tokens),
        "entropy": -float(sequences.policy[sequences.mask].sum()) / tokens,
        "response_length": float(lengths.mean()),
        "by_staleness": {
            name: value for name, value in found.items() if "/" in name and name.partition("/")[2] not in LEVELS
        },
        "by_difficulty": {name: value for name, value in found.items() if name.partition("/")[2] in LEVELS},
    }
    return line


class PartitionSummary:
    """How well Z is known over all prompts; looked at anew when that costs less than 2 % of the time."""

    def __init__(self, partition: PartitionFunction) -> None:
        self._partition = partition
        self._due = 0.0
        self._last: dict[str, float] = {}

    def narrow_share(self) -> float:
        """Share of visited prompts whose 95 % interval of Z spans less than a factor of two."""
        begin = time.monotonic()
        if begin >= self._due:
            self._last = self._partition.summary()
            self._due = begin + 50 * (time.monotonic() - begin)
        return self._last["z_narrow_share"]


class Journal:
    """metrics.jsonl: one line a step, none twice."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def truncate(self, step: int) -> None:
        """Keep the lines of steps ≤ `step`: a resumed run does the later ones again. Also drops a half-written line."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                body = json.loads(line)
            except ValueError:
                continue  # cut off by the crash this resume follows
            if line.endswith("\n") and body["step"] <= step:
                kept.append(line)
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text("".join(kept), encoding="utf-8")
        os.replace(partial, self.path)

    def append(self, line: dict[str, Any]) -> None:
        """Write one line; numbers that JSON has no word for become null."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(_plain(line)) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


class LearnerMetrics:
    """The learner's Prometheus series; labels come from fixed sets only."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"sieve_learner_{name}", text, labels, registry=registry)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"sieve_learner_{name}", text, registry=registry)

        self.step = gauge("step", "Optimiser steps done.")
        self.version = gauge("version", "Newest published version.")
        self.committed = gauge("committed_step", "Newest step with a durable checkpoint whose groups are committed.")
        self.steps = counter("steps", "Optimiser steps done by this process.")
        self.refused = counter(
            "refused_steps", "Steps not applied because a number was not finite or nothing was left."
        )
        self.completions = counter("completions", "Completions trained on.")
        self.tokens = counter("tokens", "Completion tokens trained on.")
        self.scored = counter("base_scored", "Completions scored under the base model by this rank.")
        self.evaluations = counter("evaluations", "Held-out evaluations finished.")
        self.seconds = Histogram(
            "sieve_learner_step_seconds", "Time of a step by part.", ["part"], registry=registry,
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000),
        )  # fmt: skip
        self.staleness = Histogram(
            "sieve_learner_staleness_versions", "Staleness of each completion when its group was leased.",
            registry=registry, buckets=STALENESS_EDGES,
        )  # fmt: skip
        self.scalars = {
            "loss": gauge("loss", "Loss of the last step."),
            "grad_norm": gauge("gradient_norm", "Global L2 norm of the last gradient, before clipping."),
            "lr": gauge("learning_rate", "Learning rate of the last step."),
            "pass_rate": gauge("pass_ratio", "Share of right answers in the last step."),
            "mean_r": gauge(
                "mean_reward", "Estimate of E[r] under the policy, r = (p/π)^(1−α); never above 1 in truth."
            ),
            "mean_r_alarm": gauge("mean_reward_alarm", "1 when that estimate exceeds 1 by three standard errors."),
            "truncated_share": gauge("truncated_ratio", "Share of ratios π_θ/μ that were truncated."),
            "clipped_share": gauge("clipped_ratio", "Share of right answers whose weight W was clipped."),
            "clipped_mass": gauge("clipped_mass_ratio", "Share of all weight that truncation and clipping took away."),
            "z_mean": gauge("partition_mean", "Mean Z of the last step's prompts."),
            "z_narrow_share": gauge(
                "partition_narrow_ratio", "Share of prompts whose Z is known within a factor of two."
            ),
            "mismatch_mean": gauge(
                "mismatch_mean_nats", "Mean |log π_θ − log μ| per token of the freshest samples of the step."
            ),
            "mismatch_max": gauge("mismatch_max_nats", "Largest such difference: the canary for broken weight sync."),
            "mismatch_staleness": gauge("mismatch_staleness_versions", "How many versions old those samples are."),
            "canary_mean": gauge(
                "canary_mismatch_nats", "Largest mean |Δ log π| per token that an actor reported on a canary lately."
            ),
            "entropy": gauge("entropy_nats", "Mean −log π_θ per sampled token."),
            "response_length": gauge("response_length_tokens", "Mean length of a completion."),
            "staleness_mean": gauge("staleness_mean_versions", "Mean staleness of the last step's completions."),
            "staleness_max": gauge("staleness_max_versions", "Largest staleness of the last step's completions."),
            "mass_in_support": gauge("mass_in_support_ratio", "Policy mass on right answers, by importance weights."),
            "mass_excess": gauge("mass_excess_ratio", "Mass on right answers in excess of the target's: E[v(π−p)₊]."),
            "mass_lacking": gauge("mass_lacking_ratio", "Mass on right answers that the policy lacks: E[v(p−π)₊]."),
            "admitted_staleness": gauge(
                "admitted_staleness_versions", "Staleness that admission aims at; below the bound when ESS is short."
            ),
        }
        self.ess = gauge("ess_ratio", "Effective sample size as a share, of ρ = π_θ/μ, ρ^α and W.", "weight")
        self.bucket = gauge("staleness_bucket_ratio", "ESS and gradient share by staleness.", "figure", "bucket")
        self.difficulty = gauge("difficulty_pass_ratio", "Pass rate by the prompts' estimated Z.", "difficulty")
        self.divergence = gauge("divergence_nats", "Estimated divergence of the policy from the target.", "kind")
        self.passes = gauge("eval_pass_ratio", "pass@k of the newest finished evaluation.", "k")
        self.distinct = gauge("eval_distinct_correct", "Mean number of distinct right answers a prompt in it.")
        self.eval_version = gauge("eval_version", "The version it is of.")

    def observe(self, line: dict[str, Any], sequences: Sequences | None) -> None:
        """Take over one line of metrics.jsonl."""
        self.steps.inc()
        self.step.set(line["step"])
        self.version.set(line["version"])
        if line["refused"]:
            self.refused.inc()
        for name, series in self.scalars.items():
            if line.get(name) is not None:
                series.set(line[name])
        for part in PARTS:
            if f"seconds_{part}" in line:
                self.seconds.labels(part).observe(line[f"seconds_{part}"])
        self.seconds.labels("whole").observe(line["seconds"])
        if sequences is None:
            return
        self.completions.inc(line["completions"])
        self.tokens.inc(line["tokens"])
        for value in sequences.staleness.tolist():
            self.staleness.observe(value)
        for weight in ("rho", "rho_alpha", "weight"):
            self.ess.labels(weight).set(line[f"ess_{weight}"])
        for kind in DIVERGENCES:
            self.divergence.labels(kind).set(line[kind])
        self.bucket.clear()  # a bucket without samples now must not show what it was
        known = {name for name, _, _ in BUCKETS}
        for name, value in line["by_staleness"].items():
            figure, _, bucket = name.partition("/")
            if bucket in known:
                self.bucket.labels(figure, bucket).set(value)

        self.difficulty.clear()
        for name in LEVELS:
            if f"pass_rate/{name}" in line["by_difficulty"]:
                self.difficulty.labels(name).set(line["by_difficulty"][f"pass_rate/{name}"])

    def evaluated(self, figures_of: dict[str, float]) -> None:
        """Take over a finished evaluation."""
        self.evaluations.inc()
        self.eval_version.set(figures_of["version"])
        self.distinct.set(figures_of.get("distinct_correct", 0.0))
        for name, value in figures_of.items():
            if name.startswith("pass@"):
                self.passes.labels(name.removeprefix("pass@")).set(value)
