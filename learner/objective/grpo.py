"""GRPO: group-relative policy optimisation. Shao et al., arXiv 2402.03300.

    A_i = (R_i − mean R) / (std R + 10⁻⁶)          coefficient = ω · A_i · L_norm / |y_i|

The last factor undoes the loss's constant length for the published average over each answer's own tokens. A batch is
used for one update, so PPO's ratio to the weights before the update is 1 and its clip never acts; what is left of it
is ω, the ratio to the sampler, which is the staleness correction.
"""

from __future__ import annotations

from torch import Tensor

from learner.objective.groups import Groups
from learner.objective.ratios import correction_weights
from learner.objective.rewards import penalised
from learner.objective.sequences import Sequences
from learner.objective.settings import ObjectiveSettings


def group_relative(sequences: Sequences, settings: ObjectiveSettings, length_norm: float, reward: Tensor) -> Tensor:
    """GRPO's coefficients for any (N,) reward; (N, 1) or (N, T)."""
    groups = Groups(sequences.group)
    advantage = reward - groups.mean(reward)
    if settings.grpo_std:
        advantage = advantage / (groups.mean(advantage.square()).sqrt() + 1e-6)
    if settings.grpo_length:
        advantage = advantage * length_norm / sequences.tokens.clamp(min=1)
    return correction_weights(sequences, settings) * advantage[:, None]


def values(sequences: Sequences, settings: ObjectiveSettings, length_norm: float) -> Tensor:
    """GRPO's coefficients; (N, 1) or (N, T)."""
    return group_relative(sequences, settings, length_norm, penalised(sequences, settings.beta(0.0)))
