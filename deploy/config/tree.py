"""The configuration root: one pydantic tree, its YAML form, and the wording of what is wrong with it.

What settings mean together is judged in checks.py, files and overrides are read in load.py; each section's own limits
are with the package that reads it. Never imports torch, ray or transformers: `sieve config` answers at once.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Iterator
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from actor.settings import ActorSettings
from broker.errors import EX_USAGE, SieveError, redact
from broker.settings import Shared
from deploy.config.settings import LaunchSettings, SweepSettings
from learner.settings import LearnerSettings
from verifier.settings import VerifierSettings


class ConfigError(SieveError):
    """Settings that cannot be used; `problems` holds one line for each."""

    exit_code = EX_USAGE

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(redact(" ".join(problem.split())) for problem in problems)
        super().__init__(" | ".join(self.problems))


class Config(Shared):
    """Everything a run needs to know. Sections that several rooms read come from broker/settings.py."""

    actor: ActorSettings = ActorSettings()
    verifier: VerifierSettings = VerifierSettings()
    learner: LearnerSettings = LearnerSettings()
    launch: LaunchSettings = LaunchSettings()
    sweep: SweepSettings = SweepSettings()


def plain(config: BaseModel, *, secrets: bool = False) -> dict[str, Any]:
    """The tree as JSON-compatible values, ready for YAML or for another process. Passwords are masked unless
    `secrets`."""
    tree = config.model_dump(mode="json")
    url = typing.cast("Config", config).broker.url
    if url is not None:
        tree["broker"]["url"] = url.get_secret_value() if secrets else redact(url.get_secret_value())
    return tree


def dump(config: Config) -> str:
    """The whole tree as YAML, defaults included, passwords masked."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, width=120)


def explain(error: ValidationError) -> list[str]:
    """Pydantic's errors, one line each: the key, the value, the limit and what to do."""
    return [_line(problem) for problem in error.errors(include_url=False)]


def _line(problem: Any) -> str:
    loc = [str(part) for part in problem["loc"]]
    key, kind, context = ".".join(loc), problem["type"], problem.get("ctx", {})
    value = "***" if key == "broker.url" else repr(problem.get("input"))[:80]
    bounds = {"greater_than_equal": ("at least", "ge"), "greater_than": ("greater than", "gt"),
              "less_than_equal": ("at most", "le"), "less_than": ("less than", "lt")}  # fmt: skip
    if kind == "extra_forbidden":
        return f"{key} = {value}: unknown key; {_nearest(loc)}"
    if kind == "missing":
        return f"{key}: required and not given; add it to the file or pass --set {key}=…"
    if kind in bounds:
        words, name = bounds[kind]
        return f"{key} = {value}: must be {words} {context[name]}; change {key}"
    if kind == "value_error":
        # The section's own validator: its message already says value, limit and remedy.
        message = str(context.get("error", problem["msg"]))
        return message if message.startswith(key) else f"{key}: {message}"
    if kind in ("literal_error", "enum"):
        return f"{key} = {value}: must be one of {context['expected']}; change {key}"
    if kind == "union_tag_invalid":
        tag = context["discriminator"].strip("'")
        return f"{key}.{tag} = {context['tag']!r}: must be one of {context['expected_tags']}; change {key}.{tag}"
    if kind == "string_pattern_mismatch":
        return f"{key} = {value}: must match {context['pattern']}; change {key}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{key} = {value}: is a section; write its keys below it, or {key}.<key>=… with --set"
    return f"{key} = {value}: {problem['msg']}; change {key}"


def _nearest(loc: list[str]) -> str:
    """What was probably meant by the unknown last part of `loc`."""
    leaf, parents = loc[-1], loc[:-1]
    here = sorted({name for model in _models_at(parents) for name in model.model_fields})
    near = difflib.get_close_matches(leaf, here, 1, 0.6)
    if near:
        return f"did you mean {'.'.join([*parents, near[0]])}?"
    everywhere = dict(_keys(Config))
    near = difflib.get_close_matches(leaf, everywhere, 1, 0.75)
    if near:
        return f"did you mean {everywhere[near[0]]}?"
    return f"remove it; known here: {', '.join(here)}"


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Every section type in an annotation: optional, union, mapping and annotated ones included."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]


def _models_at(path: list[str]) -> list[type[BaseModel]]:
    models: list[type[BaseModel]] = [Config]
    for part in path:
        below = [
            m for model in models if part in model.model_fields for m in _models_in(model.model_fields[part].annotation)
        ]
        models = below or models  # a key of a mapping, or the tag of a union: the same section types still apply
    return models


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, full key) of every setting that is not itself a section."""
    for name, field in model.model_fields.items():
        below = _models_in(field.annotation)
        if not below:
            yield name, f"{prefix}{name}"
        for section in below:
            yield from _keys(section, f"{prefix}{name}.")
