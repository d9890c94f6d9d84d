"""What may change when a run is resumed, and how a change is found. Pure; never imports torch.

Everything that says what is trained on what is fixed within a run: the groups that are committed came from it. What may
change is listed here, and a key that is not listed may not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MAY_CHANGE = (
    # Where things are and how many there are. Model and prompts are compared by content, not by their paths.
    "run.name", "run.directory", "model.path", "data.train", "data.eval",
    "broker", "metrics", "launch", "actor", "verifier", "sweep",
    "weights.cache", "weights.delta", "weights.broadcast", "weights.broadcast_host", "weights.broadcast_seconds",
    # How far the run goes, how old samples may be, when it is saved and measured.
    "schedule.steps", "schedule.checkpoint_every", "schedule.max_staleness", "schedule.ess_target",
    "evaluation.base", "evaluation.every", "evaluation.samples", "evaluation.deadline_seconds",
    # How a step is computed, and the optimiser.
    "learner.optimizer", "learner.device", "learner.threads", "learner.micro_batch_tokens", "learner.row_tokens",
    "learner.recompute", "learner.reshard_after_forward", "learner.keep_checkpoints", "learner.keep_versions",
    "learner.refusals_in_a_row", "learner.mismatch_nats", "learner.collective_seconds",
)  # fmt: skip
"""Dotted names of settings and sections that a resumed run may have changed."""
OF_THE_TRAINING = ("model", "data", "sampling", "schedule", "evaluation", "weights", "learner", "run.seed")
"""What the broker keeps of a run's settings, so that a learner that is started by hand is held to them too."""
OF_A_STEP = ("learner.optimizer", "schedule.max_staleness", "schedule.ess_target")
"""Of these, what has an effect only if another step is taken."""


@dataclass(frozen=True)
class Change:
    """One setting that differs from what the run had."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} = {self.now!r:.60}, in the run {self.was!r:.60}"


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name → value of every setting of a tree of JSON values; an empty section is a value."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{name}.{below}": item for below, item in flat(value).items()}
        else:
            found[str(name)] = value
    return found


def of_the_training(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that the broker keeps, by dotted name."""
    return {key: value for key, value in flat(tree).items() if _within(key, OF_THE_TRAINING)}


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The settings, by dotted name, that differ; a name that one side lacks has None there."""
    return [Change(key, was.get(key), now.get(key)) for key in sorted({*was, *now}) if was.get(key) != now.get(key)]


def refused(found: Iterable[Change]) -> list[Change]:
    """Those changes that a resumed run may not have."""
    return [change for change in found if not _within(change.key, MAY_CHANGE)]


def without_effect(found: Iterable[Change]) -> list[Change]:
    """Those changes that need another step to have an effect."""
    return [change for change in found if _within(change.key, OF_A_STEP)]


def _within(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
