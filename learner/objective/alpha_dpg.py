"""α-DPG for asynchronous samples: the default objective.

Kruszewski, Erbacher, Rozen, Dymetman (arXiv 2512.05962): for p ∝ π_b·v and r = (p/π)^{1−α},

    L_α = (1 − E_π[r]) / α          ∇L_α = −E_{y~π}[ r · ∇log π(y) ]

With y drawn from any behaviour policy μ that covers p, and ρ = π_θ/μ, the same gradient is

    ∇L_α = −E_{y~μ}[ (W − c·ρ) · ∇log π_θ(y) ]          W = r·ρ = v · (p/μ)^{1−α} · ρ^α

so α is the exponent of staleness. E_μ[ρ ∇log π_θ] = 0, hence c·ρ adds no bias when c does not depend on the sample;
without its ρ it would. Both limits are the formula itself: at α = 0 no ratio appears, at α = 1 no target does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.objective.groups import Groups
from learner.objective.protocol import Context
from learner.objective.ratios import (
    bounded_exp,
    correction_weights,
    inside_band,
    kept,
    log_sequence_ratio,
    per_sequence,
    token_log_ratio,
)
from learner.objective.sequences import Sequences
from learner.objective.settings import AlphaDpgSettings


def log_weight(sequences: Sequences, log_rho: Tensor, alpha: float) -> Tensor:
    """log W = (1−α)·log p/μ + α·log ρ of a right answer; (N,) or (N, T) float32, as `log_rho`, which may be bounded."""
    log_target = sequences.log_target_over_sampler
    return (1 - alpha) * (log_target if log_rho.dim() == 1 else log_target[:, None]) + alpha * log_rho


def control(
    log_weights: Tensor,
    shift: Tensor,
    counted: Tensor,
    rho: Tensor,
    groups: Groups,
    settings: AlphaDpgSettings,
) -> Tensor:
    """c_i from the other samples of i's group, 0 for a group of one; (N,) float32.

    `loo`: mean_{j≠i} W_j. `min_variance`: Σ_{j≠i} W_j ρ_j / Σ_{j≠i} ρ_j², the least-squares c of W ≈ c·ρ, held to
    [0, 1]: it stands for E_π[r], which lies there, and ratios near 0 would otherwise make it arbitrarily large.

    Here W_j = exp(log_weights_j − shift_i), 0 where not `counted`: with i's own Ẑ and not with j's. Ẑ_j leaves out j
    and so contains i; a c_i made of it would depend on i after all, and turn the gradient while a prompt is new.
    `log_weights` are without Ẑ, `shift` is (1−α)·log Ẑ; (N,) each. Memory: groups · n² numbers.
    """
    if settings.control_variate == "none" or not len(groups):
        return torch.zeros_like(rho)
    log_others = groups.pad(log_weights)[:, None, :] - groups.pad(shift)[:, :, None]
    others = groups.pad(counted)[:, None, :] & ~torch.eye(groups.width, dtype=torch.bool, device=rho.device)
    weights = torch.where(others, bounded_exp(log_others, settings.clip), 0.0)
    if settings.control_variate == "loo":
        return groups.unpad(weights.sum(2)) / (groups.size - 1).clamp(min=1)
    energy = groups.others(rho * rho)
    product = groups.unpad((weights * groups.pad(rho)[:, None, :]).sum(2))
    fit = product / energy.clamp(min=torch.finfo(energy.dtype).tiny)
    return torch.where(energy > 0, fit.clamp(0, 1), 0.0)


@dataclass(frozen=True)
class AlphaDpg:
    """The importance-weighted target with its control variate."""

    settings: AlphaDpgSettings

    def values(self, sequences: Sequences, context: Context) -> Tensor:
        """W − c·ρ; (N, 1), or (N, T) for the token-level corrections.

        sequence, mask   W = v·(p/μ)^{1−α}·ρ^α             with the sequence's bounded ρ
        token, band      W_t = v·(p/μ)^{1−α}·ρ_t^α, c·ρ_t  each token's own bounded ratio in both terms
        none             W = v·(p/π_θ)^{1−α}, ρ = 1        as if μ were π_θ

        Token-level corrections ignore the ratio of what came before the token. That leaves c·ρ_t free of bias (the
        token's own score has mean 0 under it) where the ratio is not bounded, and W_t at α = 0; the bias grows with α
        to that of plain TIS at α = 1.
        """
        settings, alpha = self.settings, self.settings.alpha_at(context.progress)
        groups = Groups(sequences.group)
        passed = sequences.passed
        shift = (1 - alpha) * sequences.log_z.float()
        if settings.correction == "none":
            log_reward = (1 - alpha) * (sequences.log_target_over_sampler - sequences.log_rho)
            reward = torch.where(passed, bounded_exp(log_reward, settings.clip), 0.0)
            current = torch.ones_like(reward)
            return (reward - control(log_reward + shift, shift, passed, current, groups, settings))[:, None]
        bounded = log_sequence_ratio(sequences, settings)
        keep = kept(sequences, settings)
        rho = torch.where(keep, bounded.exp(), 0.0)
        log_weights = log_weight(sequences, bounded, alpha)
        weight = torch.where(passed & keep, bounded_exp(log_weights, settings.clip), 0.0)
        c = control(log_weights + shift, shift, passed & keep, rho, groups, settings)
        if per_sequence(settings):
            return (weight - c * rho)[:, None]
        ratio = correction_weights(sequences, settings)
        log_tokens = log_weight(sequences, token_log_ratio(sequences, settings), alpha)
        inside = passed[:, None] & inside_band(sequences, settings)
        weights = torch.where(inside, bounded_exp(log_tokens, settings.clip), 0.0)
        return weights - c[:, None] * ratio
