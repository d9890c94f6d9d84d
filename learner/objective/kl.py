"""KL-regularised RLVR: the reverse KL to p_β ∝ π_b·e^{v/β}, estimated as RLOO on the penalised reward.

    maximise E_π[v] − β·KL(π‖π_b)          R = v − β·log π_θ/π_b

The limit β → 0 of p_β is α-DPG's target, approached from the mode-seeking side. Korbak et al., arXiv 2206.00761.
Stale samples: as RLOO. The other policy-gradient objectives take the same penalty through their own `kl_beta`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from learner.objective.protocol import Context
from learner.objective.rewards import penalised
from learner.objective.rloo import leave_one_out
from learner.objective.sequences import Sequences
from learner.objective.settings import KlSettings


@dataclass(frozen=True)
class Kl:
    """RLOO on the penalised reward."""

    settings: KlSettings

    def values(self, sequences: Sequences, context: Context) -> Tensor:
        """KL-regularised RLVR's coefficients, β = `kl_beta`; (N, 1) or (N, T)."""
        return leave_one_out(sequences, context, penalised(sequences, self.settings.kl_beta))
