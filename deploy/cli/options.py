"""Arguments and options that several commands have, and what is done with them first. Imports nothing heavy."""

from __future__ import annotations

import os
import typing
from pathlib import Path
from typing import Annotated

import typer

if typing.TYPE_CHECKING:
    from rich.console import Console

    from deploy.config.load import Checks
    from deploy.config.tree import Config


def by_shell() -> list[str]:
    """No completions of our own: the shell then completes file names, with its own rules for folders and blanks."""
    return []


ConfigPath = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG", help="YAML file, or a run directory.", show_default=False, autocompletion=by_shell
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; repeatable.", show_default=False),
]


def console() -> Console:
    """The terminal, without markup: messages of libraries may hold what rich would read as such."""
    from rich.console import Console

    return Console(markup=False, emoji=False)


def load_config(path: Path, sets: list[str] | None, check: Checks) -> Config:
    """The configuration in a YAML file or a run directory. Raises ConfigError, SchemaError.

    From here on the file's folder and the working directory are searched for modules that the configuration names.
    """
    from deploy.config import search_path
    from deploy.config.load import load
    from deploy.rundir.schema import check_schema

    if path.is_dir():
        check_schema(path)  # first: what an earlier release wrote would be refused key by key
        path = path / "config.yaml"
    search_path.add([path.parent, Path.cwd()])
    return load(path, sets or (), check=check)


def quiet_ray() -> None:
    """Set what Ray reads from the environment when it is imported.

    No usage statistics, no announcement of a new default at every start, and services at normal priority: Ray would run
    them at 15, behind everything else on the machine.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
