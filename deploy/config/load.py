"""Reading a configuration from YAML, the environment and `--set a.b=c`, later ones winning.

file  <  SIEVE_SECTION__KEY=value  <  --set section.key=value
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

from deploy.config.checks import problems_of
from deploy.config.tree import Config, ConfigError, explain

Checks = typing.Literal["all", "settings", "none"]
PREFIX = "SIEVE_"
MAX_FILE_BYTES = 1 << 20
"""A configuration is a page of text; a larger file is not one (a prompt or weight file named by mistake)."""


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
        found = list(problems_of(config, files=check == "all"))
        if found:
            raise ConfigError(found)
    return config


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
