"""The configuration root: one pydantic tree, read from YAML, the environment and `--set a.b=c`, later ones winning.

    file  <  SIEVE_SECTION__KEY=value  <  --set section.key=value

Holds reading, merging and the wording of errors. What settings mean together is judged in checks.py; each section's own
limits live with the room that reads it. Never imports torch, ray or transformers: `sieve config` answers at once.
"""

from __future__ import annotations

import difflib
import os
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, SecretStr, ValidationError

from actor.settings import ActorSettings
from broker.errors import EX_USAGE, SieveError, redact
from broker.settings import Shared
from deploy.config.settings import LaunchSettings, SweepSettings
from learner.settings import LearnerSettings
from verifier.settings import VerifierSettings

Checks = typing.Literal["all", "settings", "none"]
PREFIX = "SIEVE_"
MAX_FILE_BYTES = 1 << 20
"""A configuration is a page of text; a larger file is not one (a prompt or weight file named by mistake)."""


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


def load(
    path: Path, assignments: Iterable[str] = (), environment: Mapping[str, str] | None = None, *, check: Checks = "all"
) -> Config:
    """Read, merge, validate and cross-check a configuration; relative paths in it are taken from the working directory.

    `assignments` are the `--set` texts (`schedule.steps=20`), `environment` defaults to the process's own. `check`:
    `settings` leaves out the checks that read the model and prompt files (a verifier's machine need not have them),
    `none` all that look at more than one key (commands that only need to find a run).
    Raises ConfigError with one line per problem, each naming the key, the value, the limit and the remedy.
    """
    tree = _read(path)
    problems: list[str] = []
    for source, keys, value in _overrides(assignments, os.environ if environment is None else environment, problems):
        _assign(tree, source, keys, value, problems)
    if problems:
        raise ConfigError(problems)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None
    config = _absolute(config)
    if check != "none":
        from deploy.config.checks import problems_of

        found = list(problems_of(config, files=check == "all"))
        if found:
            raise ConfigError(found)
    return config


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


class _Loader(yaml.SafeLoader):
    """YAML as usual, except that a key written twice is an error: which one was meant cannot be known."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError([f"line {line}: key {key!r} is not text; quote it or remove it"])
            if key in seen:
                raise ConfigError(
                    [f"line {line}: key {key!r} is written twice (first on line {seen[key]}); remove one"]
                )
            seen[key] = line
        return typing.cast("dict[Any, Any]", super().construct_mapping(node, deep))


def _read(path: Path) -> dict[str, Any]:
    """The YAML file as a dictionary."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ConfigError(
                [
                    f"{path}: {size} bytes, over the limit of {MAX_FILE_BYTES} for a configuration file; name the "
                    f"YAML file"
                ]
            )
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [found.name for found in path.parent.glob("*.y*ml")], 1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of a YAML file"
        raise ConfigError([f"{path}: no such configuration file; {hint}"]) from None
    except IsADirectoryError:
        raise ConfigError([f"{path}: is a directory; give the path of the YAML file in it"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            [f"{path}: not UTF-8 text (byte {error.start}); a configuration is a YAML text file"]
        ) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}; check its permissions"]) from None
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(
            [f"{path}:{where} not YAML: {getattr(error, 'problem', None) or error}; correct the line"]
        ) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {problem}" for problem in error.problems) from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(
            [f"{path}: holds a {type(tree).__name__}, not sections; begin with `run:`, `model:`, `data:`"]
        )
    return tree


def _overrides(
    assignments: Iterable[str], environment: Mapping[str, str], problems: list[str]
) -> Iterator[tuple[str, list[str], Any]]:
    """(source, path of keys, value) of every override, in order of application."""
    for name in sorted(environment):
        # Names without a double underscore are left alone: Kubernetes puts SIEVE_<SERVICE>_PORT and the like into
        # every pod.
        if name.startswith(PREFIX) and "__" in name[len(PREFIX) :]:
            keys = name[len(PREFIX) :].lower().split("__")
            yield f"environment {name}", keys, _value(f"environment {name}", environment[name], problems)
    for text in assignments:
        name, equals, value = text.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            problems.append(f"--set {text}: not of the form section.key=value; write e.g. --set schedule.steps=20")
            continue
        yield f"--set {name.strip()}", keys, _value(f"--set {name.strip()}", value, problems)


def _value(source: str, text: str, problems: list[str]) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ConfigError):
        problems.append(f"{source} = {text}: not a YAML value; quote it")
        return None


def _assign(tree: dict[str, Any], source: str, keys: list[str], value: Any, problems: list[str]) -> None:
    """Put `value` at `keys`, making sections on the way; merging stops at the first thing that is no section."""
    at = tree
    for depth, key in enumerate(keys[:-1]):
        below = at.get(key)
        if below is None:
            below = at[key] = {}
        if not isinstance(below, dict):
            problems.append(f"{source}: {'.'.join(keys[: depth + 1])} is not a section; set it as a whole instead")
            return
        at = below
    at[keys[-1]] = value


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


def _absolute(config: Config) -> Config:
    """The same settings with absolute paths: the services of a run do not share the launcher's working directory."""

    def fix(value: Any) -> Any:
        if isinstance(value, Path):
            return Path(os.path.abspath(value.expanduser()))
        if isinstance(value, BaseModel) and not isinstance(value, SecretStr):
            changed = {name: fix(getattr(value, name)) for name in type(value).model_fields}
            return value.model_copy(update=changed)
        return value

    return typing.cast("Config", fix(config))
