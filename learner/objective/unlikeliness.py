"""Unlikeliness reward: rare right answers are worth more than frequent ones. He et al., arXiv 2506.02355.

    R_i = v_i · (1 − β_rank · (n − rank_i) / n)          then as GRPO

rank 0 is the sample that the sampler thought the most probable of its group. Stale samples: as GRPO; the rank is by
log μ, the policy that chose among the group's answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.objective.groups import Groups
from learner.objective.grpo import advantage
from learner.objective.protocol import Context
from learner.objective.ratios import correction_weights
from learner.objective.rewards import penalised
from learner.objective.sequences import Sequences
from learner.objective.settings import UnlikelinessSettings


@dataclass(frozen=True)
class Unlikeliness:
    """GRPO on a reward that is higher for rare right answers."""

    settings: UnlikelinessSettings

    def values(self, sequences: Sequences, context: Context) -> Tensor:
        """Coefficients of the rank-discounted reward; (N, 1) or (N, T). Ties keep the batch's order."""
        groups = Groups(sequences.group)
        log_sampler = torch.where(sequences.mask, sequences.sampler.float(), 0.0).sum(1)
        order = groups.pad(log_sampler, fill=-torch.inf).argsort(dim=1, descending=True, stable=True)
        rank = groups.unpad(order.argsort(dim=1)).float()
        penalty = penalised(sequences, self.settings.kl_beta) - sequences.passed.float()
        worth = 1 - self.settings.rank_beta * (groups.size - rank) / groups.size
        reward = torch.where(sequences.passed, worth, 0.0) + penalty
        found = advantage(sequences, reward, self.settings, context.length_norm)
        return correction_weights(sequences, context.settings) * found[:, None]
