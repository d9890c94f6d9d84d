"""RLOO: REINFORCE with a leave-one-out baseline. Ahmadian et al., arXiv 2402.14740; Kool et al. 2019.

    A_i = R_i − mean_{j≠i} R_j          coefficient = ω_i · A_i

Stale samples: ω corrects the sample, and under a sequence-level correction the baseline is mean_{j≠i} ω_j R_j, so
that it estimates E_π[R]. This is the α → 1 limit of α-DPG with control variate `loo`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from learner.objective.groups import Groups
from learner.objective.protocol import Context
from learner.objective.ratios import correction_weights, per_sequence
from learner.objective.rewards import penalised
from learner.objective.sequences import Sequences
from learner.objective.settings import RlooSettings


def leave_one_out(sequences: Sequences, context: Context, reward: Tensor) -> Tensor:
    """ω_i·(R_i − baseline_i) for any (N,) reward; (N, 1) or (N, T)."""
    weights = correction_weights(sequences, context.settings)
    counted = weights[:, 0] * reward if per_sequence(context.settings) else reward
    baseline = Groups(sequences.group).mean_of_others(counted)
    return weights * (reward - baseline)[:, None]


@dataclass(frozen=True)
class Rloo:
    """REINFORCE with a leave-one-out baseline."""

    settings: RlooSettings

    def values(self, sequences: Sequences, context: Context) -> Tensor:
        """RLOO's coefficients; (N, 1) or (N, T)."""
        return leave_one_out(sequences, context, penalised(sequences, self.settings.kl_beta))
