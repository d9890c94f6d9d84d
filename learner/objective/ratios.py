"""The importance ratio π_θ/μ and the ways to bound it. Everything is exponentiated only after it has been bounded.

sequence   min(ρ, C)                 ρ = Π_t ρ_t                  truncated importance sampling (Ionides 2008)
token      min(ρ_t, C)               each token its own ratio     TIS
band       ρ_t · 1[lo ≤ ρ_t ≤ hi]                                 IcePop (Ling team 2025)
mask       ρ · 1[ρ ≤ C]                                           masked importance sampling, MIS
none       1
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learner.objective.sequences import Sequences
from learner.objective.settings import ObjectiveSettings

LOG_CEILING = 30.0
"""Where nothing else bounds a logarithm: the square of e^30, times rewards and a batch's size, is still a float32."""


def log_limit(limit: float | None) -> float:
    """log of a bound, or of the largest weight that float32 squares safely when there is none."""
    return LOG_CEILING if limit is None else min(math.log(limit), LOG_CEILING)


def bounded_exp(log_values: Tensor, limit: float | None) -> Tensor:
    """min(e^x, limit) without overflow."""
    return log_values.clamp(max=log_limit(limit)).exp()


def kept(sequences: Sequences, settings: ObjectiveSettings) -> Tensor:
    """False for sequences that the correction drops whole (`mask`: ρ > C); (N,) bool."""
    if settings.correction != "mask":
        return torch.ones_like(sequences.passed)
    return sequences.log_rho <= log_limit(settings.truncation)


def log_sequence_ratio(sequences: Sequences, settings: ObjectiveSettings) -> Tensor:
    """log min(ρ, C); (N,) float32."""
    return sequences.log_rho.clamp(max=log_limit(settings.truncation))


def per_sequence(settings: ObjectiveSettings) -> bool:
    """Whether the correction weighs whole sequences (then group sums of weighted values are meaningful)."""
    return settings.correction in ("sequence", "mask")


def inside_band(sequences: Sequences, settings: ObjectiveSettings) -> Tensor:
    """False for tokens that the correction drops (`band`: ρ_t outside the band); (N, T) bool."""
    log_rho = sequences.token_log_rho
    if settings.correction != "band":
        return torch.ones_like(log_rho, dtype=torch.bool)
    return (log_rho >= math.log(settings.band_low)) & (log_rho <= math.log(settings.band_high))


def token_log_ratio(sequences: Sequences, settings: ObjectiveSettings) -> Tensor:
    """log ρ_t, at most log C, or log band_high for `band`; (N, T) float32."""
    limit = settings.band_high if settings.correction == "band" else settings.truncation
    return sequences.token_log_rho.clamp(max=log_limit(limit))


def correction_weights(sequences: Sequences, settings: ObjectiveSettings) -> Tensor:
    """What multiplies an advantage so that samples from μ count as samples from π_θ; (N, 1) or (N, T) float32."""
    if settings.correction == "none":
        return torch.ones_like(sequences.log_rho)[:, None]
    if per_sequence(settings):
        ratio = log_sequence_ratio(sequences, settings).exp()
        return torch.where(kept(sequences, settings), ratio, 0.0)[:, None]
    return torch.where(inside_band(sequences, settings), token_log_ratio(sequences, settings).exp(), 0.0)
