"""Diagnostics of a batch: staleness, truncation and the distance to the target. Never changes a coefficient.

All estimates are over μ, the samples' own behaviour policy, with w = v·π_b/(Ẑμ) = p/μ and ρ = π_θ/μ. Names ending in
`/<bucket>` are over the samples of one staleness bucket, in `/<level>` over those of prompts of that difficulty; one
without samples is left out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from learner.difficulty import Z_LEVELS
from learner.objective.alpha_dpg import log_weight
from learner.objective.ratios import LOG_CEILING, inside_band, log_limit
from learner.objective.sequences import Sequences
from learner.objective.settings import ObjectiveSettings

BUCKETS: tuple[tuple[str, int, int | None], ...] = (
    ("0", 0, 0),
    ("1", 1, 1),
    ("2-3", 2, 3),
    ("4-7", 4, 7),
    ("8-15", 8, 15),
    ("16-63", 16, 63),
    ("64+", 64, None),
)
"""(name, first, last) staleness of each bucket, both inclusive."""
SMALLEST_ALPHA = 1e-3
"""Below it (1 − E[r])/α divides noise by almost nothing; KL(p‖π) is its limit."""


def in_bucket(staleness: Tensor, first: int, last: int | None) -> Tensor:
    """(N,) bool: which samples have a staleness in [first, last]."""
    inside = staleness >= first
    return inside if last is None else inside & (staleness <= last)


def effective_share(log_weights: Tensor) -> Tensor:
    """Effective sample size (Σw)² / Σw² as a share of the samples, 0–1; scalar, 0 without samples.

    Kish 1965. Relative to the largest weight, so weights of e^{±1e4} are no trouble.
    """
    if log_weights.numel() == 0:
        return torch.zeros((), device=log_weights.device)
    weights = (log_weights - log_weights.max()).exp()
    return weights.sum().square() / weights.square().sum() / log_weights.numel()


def diagnose(sequences: Sequences, settings: ObjectiveSettings, progress: float, values: Tensor) -> dict[str, Tensor]:
    """Every diagnostic of the batch whose coefficients are `values`; scalars, float32, finite.

    `progress` is step / steps. α and the clip of W are those of `settings.diagnostic_weight`; W and ρ are of whole
    sequences whatever the correction. `coefficient_size` is the mean |coefficient| of a token. `ess_weight` is over
    right answers only, so that it measures how evenly they weigh and not how many there are.
    """
    alpha, clip = settings.diagnostic_weight(progress)
    log_rho, passed = sequences.log_rho, sequences.passed
    bounded = log_rho.clamp(max=log_limit(settings.truncation))
    free = log_weight(sequences, log_rho, alpha)
    used = log_weight(sequences, bounded, alpha).clamp(max=log_limit(clip))
    found: dict[str, Tensor] = {
        "alpha": torch.tensor(alpha, device=values.device),
        "pass_rate": _mean(passed.float()),
        "ess_rho": effective_share(log_rho),
        "ess_rho_alpha": effective_share(alpha * log_rho),
        "ess_weight": effective_share(used[passed]),
        "coefficient_size": _mean(values.expand_as(sequences.mask)[sequences.mask].abs()),
    }
    found |= _truncation(sequences, settings, clip, free, used)
    found |= _calibration(torch.where(passed, used.exp(), 0.0))
    found |= divergences(sequences)
    found["alpha_divergence"] = alpha_divergence(sequences, alpha)
    found |= _by_staleness(sequences, alpha, used, values)
    found |= pass_rates(sequences)
    return {name: value.float().detach() for name, value in found.items()}


def _truncation(
    sequences: Sequences, settings: ObjectiveSettings, clip: float | None, free: Tensor, used: Tensor
) -> dict[str, Tensor]:
    """Share of samples (tokens, for token-level corrections) whose ratio is bounded, of right answers whose W is
    clipped, and the share of all W that bounding and clipping together take away."""
    if settings.correction == "band":
        beyond = ~inside_band(sequences, settings)[sequences.mask]
    elif settings.correction == "token":
        beyond = sequences.token_log_rho[sequences.mask] > log_limit(settings.truncation)
    else:
        beyond = sequences.log_rho > log_limit(settings.truncation)
    log_free, log_used = free[sequences.passed], used[sequences.passed]
    lost = torch.zeros((), device=free.device)
    if log_free.numel():
        lost = (1 - (torch.logsumexp(log_used, 0) - torch.logsumexp(log_free, 0)).exp()).clamp(0, 1)
    return {
        "truncated_share": _mean(beyond.float()),
        "clipped_share": _mean((log_free > log_limit(clip)).float()),
        "clipped_mass": lost,
    }


def _calibration(weight: Tensor) -> dict[str, Tensor]:
    """Ê_π[r] = mean W with its standard error, and 1 when it exceeds 1 by more than three of them.

    0 ≤ E_π[r] ≤ 1 exactly, so an alarm that persists means a wrong log-probability, Ẑ or μ.
    """
    mean = _mean(weight)
    error = weight.std(correction=1) / math.sqrt(len(weight)) if len(weight) > 1 else torch.zeros_like(mean)
    return {"mean_r": mean, "mean_r_error": error, "mean_r_alarm": (mean - 3 * error > 1).float()}


def divergences(sequences: Sequences) -> dict[str, Tensor]:
    """Importance-weighted estimates of how far π_θ is from p, averaged over the batch's prompts.

    forward_kl      E_p[log p/π]          self-normalised: Σ w log(p/π) / Σ w
    jensen_shannon  ½E_p[log p/m] + ½E_π[log π/m],  m = (p+π)/2, in nats
    total_variation ½ E_μ|w − ρ|
    mass_in_support E_π[v];   mass_excess E_μ[v(ρ−w)₊];   mass_lacking E_μ[v(w−ρ)₊]
    """
    log_w = sequences.log_target_over_sampler.clamp(-LOG_CEILING, LOG_CEILING)
    rho = sequences.log_rho.clamp(-LOG_CEILING, LOG_CEILING).exp()
    right = sequences.passed
    w = torch.where(right, log_w.exp(), 0.0)
    log_p_over_pi = sequences.log_target_over_sampler - sequences.log_rho
    middle = ((w + rho) / 2).clamp(min=torch.finfo(torch.float32).tiny)
    shannon = torch.special.xlogy(w, w / middle) + torch.special.xlogy(rho, rho / middle)
    total = w.sum()
    forward = torch.where(right, w * log_p_over_pi, 0.0).sum() / total.clamp(min=torch.finfo(torch.float32).tiny)
    return {
        "forward_kl": forward,
        "jensen_shannon": _mean(shannon) / 2,
        "total_variation": _mean((w - rho).abs()) / 2,
        "mass_in_support": _mean(torch.where(right, rho, 0.0)),
        "mass_excess": _mean(torch.where(right, (rho - w).clamp(min=0), 0.0)),
        "mass_lacking": _mean(torch.where(right, (w - rho).clamp(min=0), 0.0)),
    }


def alpha_divergence(sequences: Sequences, alpha: float) -> Tensor:
    """L_α = (1−α) D_α(π‖p) = (1 − E_π[r]) / α, estimated with the untruncated W as r; scalar, nats at α = 0.

    Finite for every α: KL(p‖π) at 0, which is estimated as in `divergences`, and 1 − pass rate of π at 1.
    """
    if alpha < SMALLEST_ALPHA:
        return divergences(sequences)["forward_kl"]
    weight = log_weight(sequences, sequences.log_rho, alpha).clamp(max=LOG_CEILING).exp()
    return (1 - _mean(torch.where(sequences.passed, weight, 0.0))) / alpha


def _by_staleness(sequences: Sequences, alpha: float, used: Tensor, values: Tensor) -> dict[str, Tensor]:
    """ESS and the share of Σ_t |coefficient| by staleness bucket: which samples move the weights."""
    pull = (values.abs() * sequences.mask).sum(1)
    total = pull.sum().clamp(min=torch.finfo(torch.float32).tiny)
    found: dict[str, Tensor] = {}
    for name, first, last in BUCKETS:
        inside = in_bucket(sequences.staleness, first, last)
        if not bool(inside.any()):
            continue
        found[f"samples/{name}"] = inside.sum()
        found[f"ess_rho/{name}"] = effective_share(sequences.log_rho[inside])
        found[f"ess_rho_alpha/{name}"] = effective_share(alpha * sequences.log_rho[inside])
        found[f"ess_weight/{name}"] = effective_share(used[inside & sequences.passed])
        found[f"gradient_share/{name}"] = pull[inside].sum() / total
    return found


def pass_rates(sequences: Sequences) -> dict[str, Tensor]:
    """Pass rate of the samples by the difficulty of their prompt; Ẑ leaves the sample itself out, so a pass does not
    make its own prompt look easy."""
    z = sequences.log_z.exp()
    found: dict[str, Tensor] = {}
    for name, least, limit in Z_LEVELS:
        inside = (z >= least) & (z < limit)
        if bool(inside.any()):
            found[f"pass_rate/{name}"] = sequences.passed[inside].float().mean()
            found[f"count/{name}"] = inside.sum()
    return found


def _mean(values: Tensor) -> Tensor:
    """Mean, 0 without values."""
    return values.mean() if values.numel() else torch.zeros((), device=values.device)
