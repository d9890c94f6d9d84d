"""GRPO: group-relative policy optimisation. Shao et al., arXiv 2402.03300.

    A_i = (R_i − mean R) / (std R + 10⁻⁶)          coefficient = ω · A_i · L_norm / |y_i|

The last factor undoes the loss's constant length for the published average over each answer's own tokens. A batch is
used for one update, so PPO's ratio to the weights before the update is 1 and its clip never acts; what is left of it
is ω, the ratio to the sampler, which is the staleness correction.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from learner.objective.groups import Groups
from learner.objective.protocol import Context
from learner.objective.ratios import correction_weights
from learner.objective.rewards import penalised
from learner.objective.sequences import Sequences
from learner.objective.settings import GroupRelativeSettings, GrpoSettings


def advantage(sequences: Sequences, reward: Tensor, settings: GroupRelativeSettings, length_norm: float) -> Tensor:
    """A_i · L_norm / |y_i| of any (N,) reward, each factor only where `settings` have it; (N,) float32."""
    groups = Groups(sequences.group)
    found = reward - groups.mean(reward)
    if settings.scale_by_std:
        found = found / (groups.mean(found.square()).sqrt() + 1e-6)
    if settings.mean_over_tokens:
        found = found * length_norm / sequences.tokens.clamp(min=1)
    return found


@dataclass(frozen=True)
class Grpo:
    """The reward relative to its group."""

    settings: GrpoSettings

    def values(self, sequences: Sequences, context: Context) -> Tensor:
        """GRPO's coefficients; (N, 1) or (N, T)."""
        reward = penalised(sequences, self.settings.kl_beta)
        found = advantage(sequences, reward, self.settings, context.length_norm)
        return correction_weights(sequences, context.settings) * found[:, None]
