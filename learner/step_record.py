"""The record of one optimiser step: a line of metrics.jsonl, and the source of the learner's Prometheus gauges.

A quantity of a step is one field here: its name in metrics.jsonl, its meaning and unit in the docstring, and, where it
is exported, its `Metric`. Never imports torch, so that reports and views read records without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class Metric:
    """The Prometheus gauge that shows a field; its help text is the field's docstring."""

    name: str


class StepRecord(BaseModel):
    """One optimiser step over all ranks.

    Shares are 0–1, log-probabilities, entropies and divergences in nats, times in seconds. Staleness is in versions:
    the optimiser steps that the weights trained from are ahead of those that sampled, in units of publish_every.
    Fields that describe the step's completions are None in a step that was refused before they were weighed. A value
    that was not finite is null in the file and None when read.
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    # --- the step

    step: Annotated[int, Metric("sieve_learner_step")]
    """Optimiser steps done, this one included."""
    version: int
    """Newest published version when the step was taken."""
    time: float
    """Unix time at which the step ended."""
    loss: Annotated[float | None, Metric("sieve_learner_loss")] = None
    """Loss of the step."""
    grad_norm: Annotated[float | None, Metric("sieve_learner_gradient_norm")] = None
    """Global L2 norm of the gradient, before clipping."""
    lr: Annotated[float | None, Metric("sieve_learner_learning_rate")] = None
    """Learning rate of the step."""
    refused: str = ""
    """Why the step was not applied; empty when it was."""
    completions: int = 0
    """Completions trained on."""
    groups: int | None = None
    """Groups that the completions belong to."""
    tokens: int | None = None
    """Completion tokens trained on."""
    admitted_staleness: Annotated[int | None, Metric("sieve_learner_admitted_staleness_versions")] = None
    """Staleness that admission aims at; below the bound when ESS is short."""

    # --- the completions

    pass_rate: Annotated[float | None, Metric("sieve_learner_pass_ratio")] = None
    """Share of right answers."""
    response_length: Annotated[float | None, Metric("sieve_learner_response_length_tokens")] = None
    """Mean length of a completion, in tokens."""
    entropy: Annotated[float | None, Metric("sieve_learner_entropy_nats")] = None
    """Mean −log π_θ per sampled token."""
    staleness_mean: Annotated[float | None, Metric("sieve_learner_staleness_mean_versions")] = None
    """Mean staleness of the step's completions."""
    staleness_max: Annotated[int | None, Metric("sieve_learner_staleness_max_versions")] = None
    """Largest staleness of the step's completions."""

    # --- the objective

    alpha: float | None = None
    """α of the weight W that the diagnostics below are of; another objective than α-DPG is measured at α-DPG's
    default."""
    coefficient_size: float | None = None
    """Mean |coefficient| of a token."""
    ess_rho: float | None = None
    """Effective sample size of ρ = π_θ/μ, as a share."""
    ess_rho_alpha: float | None = None
    """Effective sample size of ρ^α, as a share."""
    ess_weight: float | None = None
    """Effective sample size of W over right answers, as a share."""
    truncated_share: Annotated[float | None, Metric("sieve_learner_truncated_ratio")] = None
    """Share of ratios π_θ/μ that were truncated."""
    clipped_share: Annotated[float | None, Metric("sieve_learner_clipped_ratio")] = None
    """Share of right answers whose weight W was clipped."""
    clipped_mass: Annotated[float | None, Metric("sieve_learner_clipped_mass_ratio")] = None
    """Share of all weight that truncation and clipping took away."""
    mean_r: Annotated[float | None, Metric("sieve_learner_mean_reward")] = None
    """Estimate of E[r] under the policy, r = (p/π)^(1−α), whose true value is at most 1."""
    mean_r_error: float | None = None
    """Standard error of that estimate."""
    mean_r_alarm: Annotated[float | None, Metric("sieve_learner_mean_reward_alarm")] = None
    """1 when that estimate exceeds 1 by three standard errors, else 0."""

    # --- the distance to the target p

    forward_kl: float | None = None
    """KL(p‖π), self-normalised importance weights."""
    alpha_divergence: float | None = None
    """(1 − E[r]) / α, the loss that α-DPG minimises."""
    jensen_shannon: float | None = None
    """Jensen–Shannon divergence of p and π."""
    total_variation: float | None = None
    """Total variation distance of p and π."""
    mass_in_support: Annotated[float | None, Metric("sieve_learner_mass_in_support_ratio")] = None
    """Policy mass on right answers, by importance weights."""
    mass_excess: Annotated[float | None, Metric("sieve_learner_mass_excess_ratio")] = None
    """Mass on right answers in excess of the target's: E[v(π−p)₊]."""
    mass_lacking: Annotated[float | None, Metric("sieve_learner_mass_lacking_ratio")] = None
    """Mass on right answers that the policy lacks: E[v(p−π)₊]."""
    z_mean: Annotated[float | None, Metric("sieve_learner_partition_mean")] = None
    """Mean Ẑ of the step's prompts, each counted by its completions."""
    z_narrow_share: Annotated[float | None, Metric("sieve_learner_partition_narrow_ratio")] = None
    """Share of visited prompts whose Z is known within a factor of two."""

    # --- whether sampler and learner agree

    mismatch_mean: Annotated[float | None, Metric("sieve_learner_mismatch_mean_nats")] = None
    """Mean |log π_θ − log μ| per token of the freshest samples of the step.

    Those samples are `mismatch_staleness` versions old. At 0 it is pure sampler–learner disagreement and vanishes up to
    rounding. Above 0 it also holds what those versions learned, stays level while weights arrive, and grows without end
    when they do not."""
    mismatch_max: Annotated[float | None, Metric("sieve_learner_mismatch_max_nats")] = None
    """Largest |log π_θ − log μ| of a token among the freshest samples of the step."""
    mismatch_staleness: Annotated[int | None, Metric("sieve_learner_mismatch_staleness_versions")] = None
    """How many versions old those samples are."""
    canary_mean: Annotated[float | None, Metric("sieve_learner_canary_mismatch_nats")] = None
    """Largest mean |Δ log π| per token that an actor reported on a canary since the last step."""
    canary_max: float | None = None
    """Largest |Δ log π| of a token that an actor reported on a canary since the last step."""

    # --- by staleness and by difficulty

    by_staleness: dict[str, float | None] = {}
    """`<diagnostic>/<bucket>` for the buckets of `learner.objective.diagnostics.BUCKETS` that have samples."""
    by_difficulty: dict[str, float | None] = {}
    """`pass_rate/<level>` and `count/<level>` for the levels of `learner.difficulty.Z_LEVELS` that have samples."""

    # --- the time

    seconds: float = 0.0
    """Duration of the step, from the end of the one before to its last part below."""
    seconds_waiting: float = 0.0
    """Waiting for ready groups."""
    seconds_fetch: float = 0.0
    """Reading the groups from the broker."""
    seconds_base: float = 0.0
    """Scoring under the base model what was not scored before."""
    seconds_backward: float = 0.0
    """Forward, backward and the optimiser."""
    seconds_publish: float = 0.0
    """Publishing the new version; 0 where the step published none."""

    def plain(self) -> dict[str, Any]:
        """The record as metrics.jsonl has it: without fields that are None, and None for what is not finite."""
        return {name: _finite(value) for name, value in self if value is not None}


def exported() -> Iterator[tuple[str, Metric, str]]:
    """(field, metric, help text) of every field that a gauge shows."""
    for name, info in StepRecord.model_fields.items():
        for item in info.metadata:
            if isinstance(item, Metric):
                yield name, item, (info.description or "").partition("\n\n")[0].replace("\n", " ")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
