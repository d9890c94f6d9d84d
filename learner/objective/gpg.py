"""GPG: group policy gradient. Chu et al., arXiv 2504.02546.

    A_i = s · (R_i − mean R),   s = groups / groups whose rewards differ          coefficient = ω · A_i

s makes up for the groups that are all right or all wrong and give no gradient. Stale samples: as GRPO.
"""

from __future__ import annotations

from torch import Tensor

from learner.objective.groups import Groups
from learner.objective.ratios import correction_weights
from learner.objective.rewards import penalised
from learner.objective.sequences import Sequences
from learner.objective.settings import ObjectiveSettings


def values(sequences: Sequences, settings: ObjectiveSettings, length_norm: float) -> Tensor:
    """GPG's coefficients; (N, 1) or (N, T)."""
    reward = penalised(sequences, settings.beta(0.0))
    groups = Groups(sequences.group)
    advantage = reward - groups.mean(reward)
    telling = (groups.pad(advantage).abs().sum(1) > 0).sum().clamp(min=1)
    return correction_weights(sequences, settings) * (advantage * len(groups) / telling)[:, None]
