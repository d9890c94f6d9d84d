"""The reward that the policy-gradient baselines share: the verdict, less an optional KL penalty toward the base
model."""

from __future__ import annotations

from torch import Tensor

from learner.objective.sequences import Sequences


def penalised(sequences: Sequences, beta: float) -> Tensor:
    """R = v − β·log π_θ(y)/π_b(y), whose policy gradient is that of E_π[v] − β·KL(π‖π_b); (N,) float32.

    The penalty is in the reward and not a loss term of its own (GRPO's k3): only there is its gradient unbiased.
    """
    reward = sequences.passed.float()
    return reward if beta == 0 else reward - beta * sequences.log_policy_over_base
