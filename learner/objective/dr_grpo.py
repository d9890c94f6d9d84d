"""Dr. GRPO: GRPO without its two biases. Liu et al., arXiv 2503.20783.

    A_i = R_i − mean R          coefficient = ω · A_i

No division by the group's standard deviation (it favours prompts that are nearly always or nearly never solved),
none by the answer's own length. Stale samples: as GRPO.
"""

from __future__ import annotations

from torch import Tensor

from learner.objective.groups import Groups
from learner.objective.ratios import correction_weights
from learner.objective.rewards import penalised
from learner.objective.sequences import Sequences
from learner.objective.settings import ObjectiveSettings


def values(sequences: Sequences, settings: ObjectiveSettings, length_norm: float) -> Tensor:
    """Dr. GRPO's coefficients; (N, 1) or (N, T)."""
    reward = penalised(sequences, settings.beta(0.0))
    return correction_weights(sequences, settings) * (reward - Groups(sequences.group).mean(reward))[:, None]
