"""TBA: trajectory balance for asynchronous samples. Bartoldson et al., arXiv 2503.18929; VarGrad: Richter et al.
2020.

    minimise (log π_θ(y) − log π_b(y) − v/β + log Z_β)²,     log Z_β = mean over the group of v/β − log π_θ/π_b

whose gradient, times β/2, has the coefficient (v − β·log π_θ/π_b) less its group mean. Stale samples: its own way —
the squared residual has the same minimum under any behaviour policy that covers the target, so `correction` is not
read.
"""

from __future__ import annotations

from torch import Tensor

from learner.objective.groups import Groups
from learner.objective.rewards import penalised
from learner.objective.sequences import Sequences
from learner.objective.settings import ObjectiveSettings


def values(sequences: Sequences, settings: ObjectiveSettings, length_norm: float) -> Tensor:
    """TBA's coefficients with β = `kl_beta`, .05 when it is null; (N, 1). 0 for a group of one: its Z is free."""
    residual = penalised(sequences, settings.beta(0.05))
    return (residual - Groups(sequences.group).mean(residual))[:, None]
