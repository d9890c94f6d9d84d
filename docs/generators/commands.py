"""docs/reference/commands.md: every `sieve` command with its arguments and options, from typer."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from deploy.cli.main import app
from docs.generators.markdown import document, prose, table

INTRODUCTION = """
Every command takes the same CONFIG, a YAML file or a run directory, and the same `--set`. Errors are one line on stderr
each, and the process ends with one of the [exit codes](exit-codes.md). `sieve COMMAND --help` prints what stands here.
`torchrun -m sieve` and `python -m sieve` are the same command.
"""


def page() -> str:
    """The whole page."""
    root = get_command(app)
    parts = [_parameters(root)] if _parameters(root) else []
    for command in _commands("sieve", root):
        parts += command
    return document("Commands", "deploy/cli", INTRODUCTION, parts)


def _commands(path: str, group: Any) -> Iterator[list[str]]:
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from _commands(f"{path} {name}", command)
            continue
        usage = " ".join([path, name, *_usage(command)])
        parts = [f"## `{path} {name}`", f"```text\n{usage}\n```", prose(inspect.cleandoc(command.help or ""))]
        yield [*parts, _parameters(command)] if _parameters(command) else parts


def _usage(command: Any) -> Iterator[str]:
    if any(parameter.param_type_name == "option" for parameter in command.params):
        yield "[OPTIONS]"
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            name = parameter.metavar or parameter.name.upper()
            many = "..." if parameter.nargs == -1 and not name.endswith("...") else ""
            yield f"{name}{many}" if parameter.required or name.startswith("[") else f"[{name}]{many}"


def _parameters(command: Any) -> str:
    """The table of a command's arguments and options; empty when it has none that explains itself."""
    rows = []
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or not parameter.help:
            continue
        if parameter.param_type_name == "argument":
            name = f"`{parameter.metavar or parameter.name.upper()}`"
        else:
            names = " / ".join([*parameter.opts, *parameter.secondary_opts])
            value = "" if parameter.is_flag else f" {parameter.metavar or _kind(parameter)}"
            name = f"`{names}{value}`"
        default = parameter.default
        shown = "" if default in (None, "", False) or parameter.required or callable(default) else f"`{default}`"
        rows.append([name, parameter.help, shown])
    return table(["argument or option", "meaning", "default"], rows) if rows else ""


def _kind(parameter: Any) -> str:
    """What an option takes, in capitals as `--help` prints it."""
    annotation = parameter.type_descriptor.annotation
    inner = [part for part in typing.get_args(annotation) if part is not type(None)]
    if inner and all(isinstance(part, str) for part in inner):
        return "|".join(inner)
    name = getattr(inner[0] if inner else annotation, "__name__", "text")
    return {"int": "INTEGER", "Path": "PATH"}.get(name, "TEXT")
