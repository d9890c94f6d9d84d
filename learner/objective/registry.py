"""From a name in the configuration to an objective."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from learner.objective import (
    alpha_dpg,
    dr_grpo,
    gpg,
    grpo,
    kl,
    pass_at_k,
    rejection,
    remax,
    rloo,
    tba,
    unlikeliness,
)
from learner.objective.diagnostics import diagnose
from learner.objective.sequences import Coefficients, Sequences
from learner.objective.settings import ObjectiveName, ObjectiveSettings

Baseline = Callable[[Sequences, ObjectiveSettings, float], Tensor]

BASELINES: dict[ObjectiveName, Baseline] = {
    "grpo": grpo.values,
    "dr_grpo": dr_grpo.values,
    "rloo": rloo.values,
    "remax": remax.values,
    "gpg": gpg.values,
    "pass_at_k": pass_at_k.values,
    "unlikeliness": unlikeliness.values,
    "kl": kl.values,
    "tba": tba.values,
    "rejection": rejection.values,
}
"""What α-DPG is compared with, by name; each takes (sequences, settings, length_norm)."""


class Objective:
    """A configured objective: `objective(sequences, progress) -> Coefficients`."""

    def __init__(self, settings: ObjectiveSettings, length_norm: float) -> None:
        """`length_norm`: the constant L_norm of the loss in tokens, needed by objectives that undo it (GRPO)."""
        if not length_norm > 0:
            raise ValueError(f"length_norm = {length_norm}; it is the longest response in tokens and must be > 0")
        self.settings = settings
        self.length_norm = length_norm

    @torch.no_grad()
    def values(self, sequences: Sequences, progress: float = 0.0, mixed_share: float | None = None) -> Tensor:
        """Coefficients alone, without the cost of diagnostics: what a micro-batch needs; (N, 1) or (N, T) float32.

        `sequences` are whole groups, `progress` = step / steps drives the α schedule. `mixed_share`: the share of the
        whole step's groups, on all ranks, with both right and wrong answers (GPG's scale is made of it); null where
        `sequences` are the whole step.
        """
        if self.settings.name == "alpha_dpg":
            return alpha_dpg.values(sequences, self.settings, self.settings.alpha_at(progress)).float()
        found = BASELINES[self.settings.name](sequences, self.settings, self.length_norm)
        if self.settings.name == "gpg":
            found = found * gpg.scale(self.settings, gpg.mixed_share(sequences) if mixed_share is None else mixed_share)
        return found.float()

    @torch.no_grad()
    def __call__(self, sequences: Sequences, progress: float = 0.0) -> Coefficients:
        """Coefficients of whole groups, and the diagnostics of the batch."""
        values = self.values(sequences, progress)
        return Coefficients(values, diagnose(sequences, self.settings, self.settings.alpha_at(progress), values))


def build(settings: ObjectiveSettings, *, length_norm: float) -> Objective:
    """The objective that `settings.name` names."""
    return Objective(settings, length_norm)
