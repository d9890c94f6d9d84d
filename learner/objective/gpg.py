"""GPG: group policy gradient. Chu et al., arXiv 2504.02546.

    A_i = s · (R_i − mean R),   s = B / (B − M)          coefficient = ω · A_i

of B groups in the step, M are all right or all wrong and give no gradient; s makes up for them. With a KL penalty
every group gives one, and s = 1. The paper's mean over a group's tokens is the loss's constant length here. Stale
samples: as GRPO.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from learner.objective.groups import Groups
from learner.objective.protocol import Context
from learner.objective.ratios import correction_weights
from learner.objective.rewards import penalised
from learner.objective.sequences import Sequences
from learner.objective.settings import GpgSettings


@dataclass(frozen=True)
class Gpg:
    """The group-mean advantage, scaled up for the groups without gradient."""

    settings: GpgSettings

    def values(self, sequences: Sequences, context: Context) -> Tensor:
        """GPG's coefficients; (N, 1) or (N, T)."""
        reward = penalised(sequences, self.settings.kl_beta)
        advantage = reward - Groups(sequences.group).mean(reward)
        share = mixed_share(sequences) if context.mixed_share is None else context.mixed_share
        return correction_weights(sequences, context.settings) * advantage[:, None] * self.scale(share)

    def scale(self, share: float) -> float:
        """s of a step in which `share` of all groups has both right and wrong answers; 1 when none has."""
        return 1.0 if self.settings.kl_beta or share == 0 else 1 / share


def mixed_share(sequences: Sequences) -> float:
    """Share of the groups that have both right and wrong answers, 0–1; 0 without groups."""
    groups = Groups(sequences.group)
    right = groups.pad(sequences.passed.float()).sum(1)
    return float(((right > 0) & (right < groups.counts)).float().mean()) if len(groups) else 0.0
