"""`sieve init`: a commented configuration for a task, and for a task of one's own the verifier that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from broker.errors import EX_OK
from deploy.cli.options import by_shell
from deploy.config.errors import ConfigError

VERIFIER = "my_verifier.py"


def init(
    task: Annotated[
        Literal["math", "code", "lean", "own"],
        typer.Option(
            help="Of the verifiers that sieve has; own: of one that is written beside the file, for you to complete."
        ),
    ],
    path: Annotated[Path, typer.Argument(help="The file to write.", autocompletion=by_shell, metavar="PATH")] = Path(
        "sieve.yaml"
    ),
) -> int:
    """Write a commented configuration to begin with.

    Fill in the model and the prompts, then `sieve config PATH` checks it. Nothing is overwritten.
    """
    from importlib.resources import files

    templates = files("deploy.cli") / "templates"
    wanted = {path: f"{task}.yaml"}
    if task == "own":
        wanted[path.with_name(VERIFIER)] = VERIFIER
    there = [str(file) for file in wanted if file.exists()]
    if there:
        raise ConfigError([f"{file}: exists, and is not overwritten; give another path" for file in there])
    for file, template in wanted.items():
        text = (templates / template).read_text(encoding="utf-8").replace("THIS_FILE", str(path))
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("x", encoding="utf-8") as new:
                new.write(text)
        except OSError as error:
            raise ConfigError([f"{file}: cannot be written: {error.strerror}; give another path"]) from None
        typer.echo(str(file))
    return EX_OK
