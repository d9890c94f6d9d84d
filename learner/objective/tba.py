"""TBA: trajectory balance for asynchronous samples. Bartoldson et al., arXiv 2503.18929; VarGrad: Richter et al.
2020.

    minimise (log π_θ(y) − log π_b(y) − v/β + log Z_β)²,     log Z_β = mean over the group of v/β − log π_θ/π_b

whose gradient, times β/2, has the coefficient (v − β·log π_θ/π_b) less its group mean. Stale samples: the squared
residual has the same minimum under any behaviour policy that covers the target, so `correction` is not read.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from learner.objective.groups import Groups
from learner.objective.protocol import Context
from learner.objective.rewards import penalised
from learner.objective.sequences import Sequences
from learner.objective.settings import TbaSettings


@dataclass(frozen=True)
class Tba:
    """The trajectory-balance residual, centred within the group."""

    settings: TbaSettings

    def values(self, sequences: Sequences, context: Context) -> Tensor:
        """TBA's coefficients, β = `kl_beta`; (N, 1). 0 for a group of one: its Z is free."""
        residual = penalised(sequences, self.settings.kl_beta)
        return (residual - Groups(sequences.group).mean(residual))[:, None]
