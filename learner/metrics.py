"""The learner's metrics: the record of a step and the Prometheus series.

Reads what a step left behind and changes nothing in it. All values are of the whole step over all ranks; units are with
the fields of learner/step_record.py.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from learner.difficulty import Z_LEVELS
from learner.objective.diagnostics import BUCKETS
from learner.objective.registry import ConfiguredObjective
from learner.objective.sequences import Sequences
from learner.ranks import Ranks
from learner.step_record import StepRecord, exported
from learner.train.partition import PartitionFunction
from learner.train.step import Report

PARTS = ("waiting", "base", "backward", "publish")
"""Parts of a step whose duration is a histogram, by their field `seconds_<part>`."""
STALENESS_EDGES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
DIVERGENCES = ("forward_kl", "alpha_divergence", "jensen_shannon", "total_variation")


def whole_step(ranks: Ranks, report: Report) -> Sequences | None:
    """All sequences of the step on rank 0 (on the CPU), None on the others or when there are none. Collective."""
    mine = [part.to("cpu") for part in report.sequences]
    parts = [part for rank in ranks.gather_first(mine) for part in rank]
    return Sequences.joined(parts) if parts else None


def step_record(
    sequences: Sequences | None,
    report: Report,
    objective: ConfiguredObjective,
    *,
    step: int,
    version: int,
    progress: float,
    current: bool,
) -> StepRecord:
    """The record of a step, without its durations and what the service adds.

    `current`: the weights trained from were those of `version`; otherwise no sample of this step is exactly current.
    """
    record = StepRecord(
        step=step,
        version=version,
        time=time.time(),
        loss=report.loss,
        grad_norm=report.grad_norm,
        lr=report.lr,
        refused=report.refused,
        completions=report.completions,
    )
    if sequences is None:
        return record
    context = replace(objective.context, progress=progress)
    found: dict[str, Any] = {name: float(value) for name, value in objective(sequences, context).diagnostics.items()}
    levels = {name for name, _, _ in Z_LEVELS}
    tokens = float(sequences.tokens.sum())
    age = int(sequences.staleness.min())
    freshest = sequences.staleness == age
    gap = sequences.token_log_rho.abs()[freshest]
    return StepRecord(
        **record.model_dump(exclude_unset=True),
        **{name: value for name, value in found.items() if "/" not in name},
        groups=len(set(sequences.group.tolist())),
        tokens=int(tokens),
        response_length=float(sequences.tokens.mean()),
        entropy=-float(sequences.policy[sequences.mask].sum()) / tokens,
        staleness_mean=float(sequences.staleness.float().mean()),
        staleness_max=int(sequences.staleness.max()),
        z_mean=float(sequences.log_z.exp().mean()),
        mismatch_mean=float(gap.sum()) / float(sequences.mask[freshest].sum()),
        mismatch_max=float(gap.max()),
        mismatch_staleness=age if current else age + 1,
        by_staleness={
            name: value for name, value in found.items() if "/" in name and name.partition("/")[2] not in levels
        },
        by_difficulty={name: value for name, value in found.items() if name.partition("/")[2] in levels},
    )


class PartitionSummary:
    """How well Z is known over all prompts, computed again when that costs less than 2 % of the time."""

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


class LearnerMetrics:
    """The learner's Prometheus series; labels come from fixed sets only.

    Gauges of a single field of StepRecord are declared there, the others here.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, registry=registry)

        self.of_field = {field: gauge(metric.name, text) for field, metric, text in exported()}
        """By the field of StepRecord that each shows."""
        self.version = gauge("sieve_learner_version", "Newest published version.")
        self.committed = gauge(
            "sieve_learner_committed_step", "Newest step with a durable checkpoint whose groups are committed."
        )
        self.steps = counter("sieve_learner_steps", "Optimiser steps done by this process.")
        self.refused = counter(
            "sieve_learner_refused_steps", "Steps not applied because a number was not finite or nothing was left."
        )
        self.completions = counter("sieve_learner_completions", "Completions trained on.")
        self.tokens = counter("sieve_learner_tokens", "Completion tokens trained on.")
        self.scored = counter("sieve_learner_base_scored", "Completions scored under the base model by this rank.")
        self.evaluations = counter("sieve_learner_evaluations", "Evaluations finished.")
        self.seconds = Histogram(
            "sieve_learner_step_seconds",
            "Time of a step by part; checkpoint: of a checkpoint, which is no part of a step.",
            ["part"],
            registry=registry,
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000),
        )
        self.staleness = Histogram(
            "sieve_learner_staleness_versions",
            "Staleness of each completion when its group was leased.",
            registry=registry,
            buckets=STALENESS_EDGES,
        )
        self.ess = gauge(
            "sieve_learner_ess_ratio", "Effective sample size as a share, of ρ = π_θ/μ, ρ^α and W.", "weight"
        )
        self.divergence = gauge(
            "sieve_learner_divergence_nats", "Estimated divergence of the policy from the target.", "kind"
        )
        self.bucket = gauge(
            "sieve_learner_staleness_bucket_ratio", "ESS and gradient share by staleness.", "statistic", "bucket"
        )
        self.difficulty = gauge(
            "sieve_learner_difficulty_pass_ratio", "Pass rate by the prompts' estimated Z.", "difficulty"
        )
        self.passes = gauge("sieve_learner_eval_pass_ratio", "pass@k of the newest finished evaluation.", "k")
        self.distinct = gauge(
            "sieve_learner_eval_distinct_correct", "Mean number of distinct right answers a prompt in it."
        )
        self.eval_version = gauge("sieve_learner_eval_version", "The version it is of.")

    def observe(self, record: StepRecord, sequences: Sequences | None) -> None:
        """Export a step, whose completions were `sequences`."""
        self.steps.inc()
        if record.refused:
            self.refused.inc()
        for field, series in self.of_field.items():
            value = getattr(record, field)
            if value is not None:
                series.set(value)
        for part in PARTS:
            self.seconds.labels(part).observe(getattr(record, f"seconds_{part}"))
        self.seconds.labels("whole").observe(record.seconds)
        if sequences is None:
            return
        self.completions.inc(record.completions)
        self.tokens.inc(record.tokens or 0)
        for staleness in sequences.staleness.tolist():
            self.staleness.observe(staleness)
        for weight in ("rho", "rho_alpha", "weight"):
            self.ess.labels(weight).set(getattr(record, f"ess_{weight}"))
        for kind in DIVERGENCES:
            self.divergence.labels(kind).set(getattr(record, kind))
        self.bucket.clear()  # a bucket without samples now must not show what it was
        buckets = {name for name, _, _ in BUCKETS}
        for name, share in record.by_staleness.items():
            statistic, _, bucket = name.partition("/")
            if bucket in buckets and share is not None:
                self.bucket.labels(statistic, bucket).set(share)
        self.difficulty.clear()
        for level, _, _ in Z_LEVELS:
            rate = record.by_difficulty.get(f"pass_rate/{level}")
            if rate is not None:
                self.difficulty.labels(level).set(rate)

    def evaluated(self, results: dict[str, float]) -> None:
        """Export a finished evaluation: the numbers of its line in eval.jsonl."""
        self.evaluations.inc()
        self.eval_version.set(results["version"])
        self.distinct.set(results.get("distinct_correct", 0.0))
        for name, value in results.items():
            if name.startswith("pass@"):
                self.passes.labels(name.removeprefix("pass@")).set(value)
