"""ReMax: REINFORCE with the reward of the most probable answer as baseline. Li et al., arXiv 2310.10505.

    A_i = R_i − R(ŷ_i)          coefficient = ω · A_i

The paper takes ŷ by greedy decoding. Samples here come from the policy at temperature 1 only, so ŷ_i is the most
probable under π_θ of the group's other samples: independent of sample i, hence still unbiased. Stale samples: ω on
the sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.objective.groups import Groups
from learner.objective.protocol import Context
from learner.objective.ratios import correction_weights
from learner.objective.rewards import penalised
from learner.objective.sequences import Sequences
from learner.objective.settings import ReMaxSettings


@dataclass(frozen=True)
class ReMax:
    """REINFORCE with the reward of the most probable other answer as baseline."""

    settings: ReMaxSettings

    def values(self, sequences: Sequences, context: Context) -> Tensor:
        """ReMax's coefficients; (N, 1) or (N, T). A group of one has baseline 0."""
        reward = penalised(sequences, self.settings.kl_beta)
        groups = Groups(sequences.group)
        log_policy = torch.where(sequences.mask, sequences.policy.float(), 0.0).sum(1)
        likely = groups.pad(log_policy, fill=-torch.inf)
        if likely.shape[1] < 2:
            return correction_weights(sequences, context.settings) * reward[:, None]
        best, second = likely.topk(2, dim=1).indices.T
        # The baseline is the most probable answer; for that answer itself it is the second most probable.
        seat = torch.arange(likely.shape[1], device=likely.device)[None, :].expand_as(likely)
        other = torch.where(seat == best[:, None], second[:, None], best[:, None])
        baseline = groups.unpad(groups.pad(reward).gather(1, other))
        baseline = torch.where(groups.size > 1, baseline, 0.0)
        return correction_weights(sequences, context.settings) * (reward - baseline)[:, None]
