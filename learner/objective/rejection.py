"""Rejection-sampling fine-tuning: maximum likelihood on what the verifier keeps. Yuan et al., arXiv 2308.01825 (RFT);
Dong et al., arXiv 2304.06767 (RAFT).

    coefficient = ω · v

Every kept answer weighs the same and wrong ones push nothing. Stale samples: ω makes them count as the current
policy's; `none` is the published practice of training on a frozen sample.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from learner.objective.protocol import Context
from learner.objective.ratios import correction_weights
from learner.objective.sequences import Sequences
from learner.objective.settings import RejectionSettings


@dataclass(frozen=True)
class Rejection:
    """Maximum likelihood on right answers."""

    settings: RejectionSettings

    def values(self, sequences: Sequences, context: Context) -> Tensor:
        """1 (times ω) for right answers, 0 for wrong ones; (N, 1) or (N, T)."""
        return correction_weights(sequences, context.settings) * sequences.passed.float()[:, None]
