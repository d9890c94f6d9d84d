"""Objectives made from their settings: built in, installed by another distribution, or named by a factory."""

from __future__ import annotations

import torch
from torch import Tensor

from broker.errors import EX_USAGE, SieveError
from broker.extensions import installed, load
from learner.objective.diagnostics import diagnose
from learner.objective.protocol import Context, Objective
from learner.objective.sequences import Coefficients, Sequences
from learner.objective.settings import ENTRY_POINTS, ObjectiveSettings, ThirdPartySettings


class ObjectiveError(SieveError):
    """An objective that cannot be found or made, or whose coefficients do not fit the sequences."""

    exit_code = EX_USAGE


class ConfiguredObjective:
    """An objective with its settings: coefficients for a micro-batch, coefficients and diagnostics for a step."""

    def __init__(self, settings: ObjectiveSettings, length_norm: float) -> None:
        """`length_norm`: the constant L_norm of the loss in tokens, > 0. Raises ObjectiveError."""
        self.settings = settings
        self.context = Context(settings, length_norm)
        """Of the run; `dataclasses.replace` adds what is known of a step."""
        self._objective = make(settings)

    @torch.no_grad()
    def values(self, sequences: Sequences, context: Context | None = None) -> Tensor:
        """Coefficients alone, without the cost of diagnostics: what a micro-batch needs; (N, 1) or (N, T) float32.

        `sequences` are whole groups. Raises ObjectiveError for coefficients of another shape.
        """
        found = self._objective.values(sequences, context or self.context)
        if tuple(found.shape) not in {(len(sequences), 1), tuple(sequences.mask.shape)}:
            raise ObjectiveError(
                f"objective {self.settings.name!r} gave coefficients of shape {tuple(found.shape)} for "
                f"{len(sequences)} sequences of up to {sequences.mask.shape[1]} tokens; they must be (N, 1) or (N, T)"
            )
        return found.float()

    @torch.no_grad()
    def __call__(self, sequences: Sequences, context: Context | None = None) -> Coefficients:
        """Coefficients of whole groups, and the diagnostics of the batch."""
        context = context or self.context
        values = self.values(sequences, context)
        return Coefficients(values, diagnose(sequences, self.settings, context.progress, values))


def build(settings: ObjectiveSettings, *, length_norm: float) -> ConfiguredObjective:
    """The objective that `settings` are of, ready to train with. Raises ObjectiveError."""
    return ConfiguredObjective(settings, length_norm)


def make(settings: ObjectiveSettings) -> Objective:
    """The objective that `settings` are of.

    Raises ObjectiveError for an ambiguous entry point, a factory that cannot be imported or refuses its options, and an
    object without `values`.
    """
    label = f"objective {settings.name!r}"
    if not isinstance(settings, ThirdPartySettings):
        built_in: Objective = load(label, settings.implementation, ObjectiveError)(settings)
        return built_in
    factory = load(label, settings.factory or _entry_point(settings.name), ObjectiveError)
    try:
        objective = factory(**settings.options)
    except (TypeError, ValueError, OSError) as error:
        raise ObjectiveError(f"{label} could not be made with options {settings.options}: {error}") from error
    if not callable(getattr(objective, "values", None)):
        raise ObjectiveError(f"{label}: {type(objective).__name__} has no method values(sequences, context)")
    made: Objective = objective
    return made


def _entry_point(name: str) -> str:
    where = installed(ENTRY_POINTS).get(name, [])
    if len(where) > 1:
        raise ObjectiveError(
            f"objective {name!r} is defined {len(where)} times ({', '.join(where)}); uninstall all but one"
        )
    if not where:
        raise ObjectiveError(
            f"no objective is called {name!r} in the entry points {ENTRY_POINTS!r} of this machine; install its "
            f"distribution here too"
        )
    return where[0]
