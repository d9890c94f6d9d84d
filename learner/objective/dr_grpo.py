"""Dr. GRPO: GRPO without its two biases. Liu et al., arXiv 2503.20783.

    A_i = R_i − mean R          coefficient = ω · A_i

No division by the group's standard deviation (it favours prompts that are nearly always or nearly never solved),
none by the answer's own length. Stale samples: as GRPO.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from learner.objective.groups import Groups
from learner.objective.protocol import Context
from learner.objective.ratios import correction_weights
from learner.objective.rewards import penalised
from learner.objective.sequences import Sequences
from learner.objective.settings import DrGrpoSettings


@dataclass(frozen=True)
class DrGrpo:
    """GRPO's advantage without scaling."""

    settings: DrGrpoSettings

    def values(self, sequences: Sequences, context: Context) -> Tensor:
        """Dr. GRPO's coefficients; (N, 1) or (N, T)."""
        reward = penalised(sequences, self.settings.kl_beta)
        return (
            correction_weights(sequences, context.settings) * (reward - Groups(sequences.group).mean(reward))[:, None]
        )
