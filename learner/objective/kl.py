"""KL-regularised RLVR: the reverse KL to p_β ∝ π_b·e^{v/β}, estimated as RLOO on the penalised reward.

    maximise E_π[v] − β·KL(π‖π_b)          R = v − β·log π_θ/π_b

The limit β → 0 of p_β is α-DPG's target, approached from the mode-seeking side. Korbak et al., arXiv 2206.00761.
Stale samples: as RLOO. Every other policy-gradient baseline takes the same penalty through `kl_beta`.
"""

from __future__ import annotations

from torch import Tensor

from learner.objective.rewards import penalised
from learner.objective.rloo import leave_one_out
from learner.objective.sequences import Sequences
from learner.objective.settings import ObjectiveSettings


def values(sequences: Sequences, settings: ObjectiveSettings, length_norm: float) -> Tensor:
    """Coefficients with β = `kl_beta`, .05 when it is null; (N, 1) or (N, T)."""
    return leave_one_out(sequences, settings, penalised(sequences, settings.beta(0.05)))
