"""The reader of configurations: a YAML file, then the environment, then `--set`, each overriding the one before.

    file  <  SIEVE_SECTION__KEY=value  <  --set section.key=value

Values of the environment and of `--set` are YAML as well.
"""

from __future__ import annotations

import difflib
import os
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from broker.plain_files import NotPlain, read_plain
from deploy.config import yaml_text
from deploy.config.checks import problems_of
from deploy.config.errors import ConfigError
from deploy.config.explain import explain
from deploy.config.tree import Config

Checks = typing.Literal["all", "settings", "none"]
PREFIX = "SIEVE_"
MAX_FILE_BYTES = 1 << 20
"""A larger file is no configuration: a prompt or weight file was named by mistake."""


def load(
    path: Path, assignments: Iterable[str] = (), environment: Mapping[str, str] | None = None, *, check: Checks = "all"
) -> Config:
    """The configuration in the file `path` after all overrides, validated and checked.

    Relative paths in it are relative to the working directory. `assignments` are the texts of `--set`
    (`schedule.steps=20`); `environment` defaults to that of the process. `check` says which rules of checks.py apply:
    `all`; `settings`, without those that read the model and the prompts, which a verifier's machine need not have;
    `none`, for commands that only have to find a run.

    Raises ConfigError with one line per problem, each with the key, the value, the limit and the remedy.
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
        found = list(problems_of(config, files=check == "all"))
        if found:
            raise ConfigError(found)
    return config


def _read(path: Path) -> dict[str, Any]:
    """The content of the YAML file."""
    text = _text(path)
    try:
        tree = yaml_text.parse(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise ConfigError([f"{path}:{where} not YAML: {problem}; correct the line"]) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {problem}" for problem in error.problems) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        kind = type(tree).__name__
        raise ConfigError([f"{path}: holds a {kind}, not sections; begin with `run:`, `model:`, `data:`"])
    return tree


def _text(path: Path) -> str:
    """The text of the file, which must look like a configuration file."""
    try:
        return read_plain(path, MAX_FILE_BYTES).decode("utf-8")
    except NotPlain as error:
        raise ConfigError([f"{path}: {error.strerror}; name the YAML file of a configuration"]) from None
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [found.name for found in path.parent.glob("*.y*ml")], 1)
        remedy = f"did you mean {path.parent / near[0]}?" if near else "give the path of a YAML file"
        raise ConfigError([f"{path}: no such configuration file; {remedy}"]) from None
    except UnicodeDecodeError as error:
        problem = f"{path}: not UTF-8 text (byte {error.start}); a configuration is a YAML text file"
        raise ConfigError([problem]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}; check its permissions"]) from None


def _overrides(
    assignments: Iterable[str], environment: Mapping[str, str], problems: list[str]
) -> Iterator[tuple[str, list[str], Any]]:
    """(source, keys from the root down, value) of every override, in order of application."""
    for name in sorted(environment):
        # Only names with a double underscore: Kubernetes sets SIEVE_<SERVICE>_PORT and the like in every pod.
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
    """The override's text as a YAML value."""
    try:
        return yaml_text.parse(text)
    except (yaml.YAMLError, ConfigError):
        problems.append(f"{source} = {text}: not a YAML value; quote it")
        return None


def _assign(tree: dict[str, Any], source: str, keys: list[str], value: Any, problems: list[str]) -> None:
    """Set `keys` of `tree` to `value`; sections that are missing on the way are added."""
    section = tree
    for depth, key in enumerate(keys[:-1]):
        below = section.get(key)
        if below is None:
            below = section[key] = {}
        if not isinstance(below, dict):
            problems.append(f"{source}: {'.'.join(keys[: depth + 1])} is not a section; set it as a whole instead")
            return
        section = below
    section[keys[-1]] = value


def _absolute(config: Config) -> Config:
    """`config` with absolute paths: the services of a run do not share the launcher's working directory."""

    def absolute(value: Any) -> Any:
        if isinstance(value, Path):
            return Path(os.path.abspath(value.expanduser()))
        if isinstance(value, BaseModel):
            return value.model_copy(update={name: absolute(getattr(value, name)) for name in type(value).model_fields})
        return value

    return typing.cast("Config", absolute(config))
