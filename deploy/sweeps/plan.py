"""The runs of a sweep: points (objective × staleness × correction) times seeds, and their configurations.

No file is read or written. All runs of a sweep have the same prompts, evaluation and number of steps. Runs of one seed
share the base model's evaluation, because version 0 is the same weights for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from deploy.config import yaml_text
from deploy.config.errors import ConfigError
from deploy.config.explain import explain
from deploy.config.tree import Config
from learner.objective.settings import Correction, ObjectiveSettings, known

BASE = "base"
LONGEST_SLUG = 52
"""Characters of a point in a run's name, which may have 64 with the seed."""
CORRECTIONS = get_args(Correction)


@dataclass(frozen=True)
class Point:
    """One of the settings that a sweep compares."""

    label: str
    """As shown in reports: `alpha=0.25`, `grpo`, `grpo:kl_beta=0.05`."""
    objective: dict[str, Any]
    """Keys of learner.objective."""
    staleness: int | None = None
    """Forced staleness; None leaves the configuration's schedule."""
    correction: str | None = None
    """None leaves the objective's own."""

    @property
    def key(self) -> str:
        """Unique within a sweep."""
        stale = "" if self.staleness is None else f" @{self.staleness}"
        return f"{self.label}{stale}" + (f" {self.correction}" if self.correction else "")

    def plain(self) -> dict[str, Any]:
        return {"key": self.key, **asdict(self)}


@dataclass(frozen=True)
class Planned:
    """One run of the sweep; `point` is None for the evaluation of the base model."""

    point: Point | None
    seed: int
    config: Config

    @property
    def path(self) -> Path:
        return self.config.run.path

    @property
    def title(self) -> str:
        return f"{self.point.key if self.point else BASE}, seed {self.seed}"


def points(words: Iterable[str], staleness: Sequence[int] = (), corrections: Sequence[str] = ()) -> list[Point]:
    """Points of `words` × `staleness` × `corrections`, in that order.

    At staleness 0 the corrections are one and the same estimator (ρ = 1), so only the first is run. Raises ConfigError.
    """
    unknown = [name for name in corrections if name not in CORRECTIONS]
    if unknown:
        raise ConfigError([f"--correction {unknown[0]}: must be one of {', '.join(CORRECTIONS)}; correct it"])
    if any(not 0 <= lag <= 1000 for lag in staleness):
        raise ConfigError([f"--staleness {min(staleness)}…{max(staleness)}: must be within 0 and 1000; correct it"])
    found: dict[str, Point] = {}
    for label, objective in _objectives(words):
        lags: list[int | None] = [*staleness] or [None]
        for lag in lags:
            ways: list[str | None] = [*(corrections[:1] if lag == 0 else corrections)] or [None]
            for correction in ways:
                point = Point(label, objective, lag, correction)
                found.setdefault(point.key, point)
    if not found:
        raise ConfigError(
            ["a sweep needs objectives: --objectives alpha=0,.5,.9 grpo rloo, or sweep.objectives in the file"]
        )
    return list(found.values())


def _objectives(words: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(label, keys) of `alpha=0,.25`, `grpo`, `grpo:kl_beta=.05`, `alpha=.25:clip=100`."""
    for word in words:
        head, *more = word.split(":")
        settings: dict[str, Any] = {}
        for part in more:
            name, equals, value = part.partition("=")
            if not equals:
                raise ConfigError([f"--objectives {word}: {part!r} is not key=value; write e.g. grpo:kl_beta=0.05"])
            try:
                settings[name] = yaml_text.parse(value)
            except (yaml.YAMLError, ConfigError):
                raise ConfigError([f"--objectives {word}: {value!r} is not a YAML value; quote it"]) from None
        suffix = "".join(f":{name}={value}" for name, value in settings.items())
        if head.startswith("alpha="):
            for text in head.removeprefix("alpha=").split(","):
                try:
                    alpha = float(text)
                except ValueError:
                    raise ConfigError([f"--objectives {word}: α = {text!r} is no number; write alpha=0,.5"]) from None
                yield f"alpha={alpha:g}{suffix}", {"name": "alpha_dpg", "alpha": alpha} | settings
        elif head in known():
            yield f"{head}{suffix}", {"name": head} | settings
        else:
            raise ConfigError([f"--objectives {word}: must be alpha=… or one of {', '.join(known())}; correct it"])


def plan(config: Config, name: str, chosen: Sequence[Point], seeds: int) -> list[Planned]:
    """All runs, seed by seed, so that an unfinished sweep compares all points; the base model first.

    Raises ConfigError for keys that do not fit the objective.
    """
    found: list[Planned] = []
    for seed in range(config.run.seed, config.run.seed + seeds):
        nothing: dict[str, dict[str, Any]] = {"schedule": {"steps": 0, "forced_staleness": 0}}
        found.append(Planned(None, seed, _configured(config, name, BASE, seed, nothing)))
        for point in chosen:
            sections: dict[str, dict[str, Any]] = {"evaluation": {"base": False}, "learner": {}}
            sections["learner"]["objective"] = dict(point.objective)
            if point.correction is not None:
                sections["learner"]["objective"]["correction"] = point.correction
            if point.staleness is not None:
                # In lock-step, so that forced is exact and not a lower bound.
                sections["schedule"] = {"max_staleness": 0, "forced_staleness": point.staleness, "ess_target": None}
                sections["evaluation"]["every"] = 0
            found.append(Planned(point, seed, _configured(config, name, point.key, seed, sections)))
    return found


def _configured(config: Config, name: str, key: str, seed: int, sections: dict[str, dict[str, Any]]) -> Config:
    tree = config.model_dump()
    directory = config.run.directory / name
    tree["run"] |= {"name": f"{slug(key)}-s{seed}", "directory": directory, "seed": seed}
    objective = dict(sections.get("learner", {}).get("objective", {}))
    if "alpha" in objective:
        objective.setdefault("alpha_schedule", ())  # the file's schedule would replace the point's α
    for section, values in sections.items():
        tree[section] |= {key: value for key, value in values.items() if section != "learner"}
    if objective:
        tree["learner"]["objective"] = _kept(config, objective.get("name")) | objective
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{key}: {line}" for line in explain(error)) from None


def _kept(config: Config, name: str | None) -> dict[str, Any]:
    """What a point keeps of the file's learner.objective: all of it for the same objective, else what every one has."""
    given = config.learner.objective
    kept = given.model_dump()
    return kept if name in (None, given.name) else {key: kept[key] for key in ObjectiveSettings.model_fields}


def slug(key: str) -> str:
    """A point's key as part of a run's name; a long one ends in its hash, so that no two share a directory."""
    name = re.sub(r"[^A-Za-z0-9._]+", "_", key).strip("_.")
    return name if len(name) <= LONGEST_SLUG else f"{name[: LONGEST_SLUG - 9]}_{sha256(key.encode()).hexdigest()[:8]}"
