"""pass@k training: maximise the chance that one of k samples is right. Tang et al., arXiv 2503.19595; Walder &
Karkhanis, arXiv 2505.15201; Chen et al., arXiv 2508.10751.

    ∇ pass@k = k · E_π[ (1 − miss_{k−1}·(1−v)) ∇log π ],     miss_m = P(m independent samples are all wrong)

From the group's other samples, with f_j = ω_j·(1 − v_j) and e_m their elementary symmetric polynomial,
m̂iss_m = e_m / C(n−1, m): unbiased for π under any behaviour policy when ω is the full ratio. The baseline is
1 − m̂iss_k:

    right answer  A_i = m̂iss_k               wrong answer  A_i = m̂iss_k − m̂iss_{k−1}
    coefficient = k · ω_i · A_i

A group of n ≤ k samples has no k others: it trains pass@min(k, n) with baseline 1 − m̂iss_{k−1}. On-policy, k = 1 is
RLOO.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.objective.groups import Groups
from learner.objective.protocol import Context
from learner.objective.ratios import LOG_CEILING, correction_weights, per_sequence
from learner.objective.rewards import penalised
from learner.objective.sequences import Sequences
from learner.objective.settings import PassAtKSettings


def misses(failures: Tensor, size: int, order: int) -> Tensor:
    """m̂iss_m for m = 0 … order without each sample: (G, n) weighted failures in, (G, n, order+1) float64 out.

    Orders above size − 1 are 0. The recursion keeps e_m / C(seen, m), an average, so nothing grows with n.
    """
    rows, width = failures.shape
    result = torch.zeros(rows, width, order + 1, dtype=torch.float64, device=failures.device)
    result[..., 0] = 1
    for seat in range(width):
        # Others than `seat` itself take it in; each has seen `seat` samples before, or one fewer when it came earlier.
        left_out = torch.arange(width, device=failures.device) == seat
        seen = torch.full((width,), float(seat), device=failures.device, dtype=torch.float64)
        seen[:seat] -= 1
        m = torch.arange(1, order + 1, device=failures.device, dtype=torch.float64)
        joins = m[None, :] / (seen[:, None] + 1)
        update = result[..., 1:] * (1 - joins) + failures[:, seat, None, None].double() * joins * result[..., :-1]
        update = torch.where(m[None, :] <= seen[:, None] + 1, update, 0.0)
        result[..., 1:] = torch.where(left_out[None, :, None], result[..., 1:], update)
    result[..., size:] = 0
    return result


@dataclass(frozen=True)
class PassAtK:
    """The gradient of pass@k, unbiased from a group's other samples."""

    settings: PassAtKSettings

    def values(self, sequences: Sequences, context: Context) -> Tensor:
        """Pass@k coefficients plus RLOO's for the KL penalty, if there is one; (N, 1) or (N, T)."""
        weights = correction_weights(sequences, context.settings)
        counted = weights[:, 0] if per_sequence(context.settings) else torch.ones_like(weights[:, 0])
        groups = Groups(sequences.group)
        right = sequences.passed
        advantage = torch.zeros_like(counted)
        beta = self.settings.kl_beta
        penalty = penalised(sequences, beta) - right.float()
        # Groups of one size at a time: k and the binomials depend on it, and sizes are few.
        for size in torch.unique(groups.size).tolist():
            rows = (groups.size == size).nonzero()[:, 0]
            k = min(self.settings.pass_k, size)
            same = Groups(sequences.group[rows])
            failures = same.pad(torch.where(right, 0.0, counted)[rows])
            missed = misses(failures, size, k)
            upper = same.unpad(missed[..., k] if k < size else missed[..., k - 1])
            lower = same.unpad(missed[..., k - 1])
            # A product of k untruncated ratios can exceed float32; bounded like a single one, still in float64.
            found = k * torch.where(right[rows], upper, upper - lower)
            advantage[rows] = found.clamp(-math.exp(LOG_CEILING), math.exp(LOG_CEILING)).float()
        if beta:
            advantage = advantage + penalty - groups.mean_of_others(counted * penalty)
        return weights * advantage[:, None]
