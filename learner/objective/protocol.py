"""What an objective is: a function from verified sequences to the coefficients of the loss. No mathematics.

An objective is found by name: built in, or installed by another distribution as an entry point of the group
`sieve.objectives`; or it is named by `learner.objective.factory`. It is made once per learner process and must not keep
state between calls: micro-batches arrive in any order and on any rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from learner.objective.sequences import Sequences
from learner.objective.settings import ObjectiveSettings


@dataclass(frozen=True)
class Context:
    """What an objective may need to know beside the sequences, of the run and of the step."""

    settings: ObjectiveSettings
    """The objective's section, for the staleness correction: `correction_weights(sequences, context.settings)`."""
    length_norm: float
    """L_norm, the constant length of the loss: the longest response in tokens; > 0."""
    progress: float = 0.0
    """step / steps, 0–1."""
    mixed_share: float | None = None
    """Share of the step's groups, on all ranks, with both right and wrong answers, 0–1; None: `sequences` are the whole
    step."""

    def __post_init__(self) -> None:
        if not self.length_norm > 0:
            raise ValueError(f"length_norm = {self.length_norm}; it is the longest response in tokens and must be > 0")


class Objective(Protocol):
    """Weighs the tokens of verified sequences:

    loss = −(1/N) Σ_i Σ_t values_{i,t} · log π_θ(y_{i,t} | y_{i,<t}) / L_norm
    """

    def values(self, sequences: Sequences, context: Context) -> Tensor:
        """Coefficients, (N, 1) where all tokens of a sequence share one, else (N, T); finite.

        Called without gradient tracking. `sequences` are whole groups, though rarely all of a step's; a group's
        coefficients may depend on that group and on `context` only.
        """
