"""`sieve sweep`, `sieve eval`, and `sieve report` of a sweep."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from broker.errors import EX_OK
from deploy.cli.options import ConfigPath, Sets, by_shell, console, load_config, quiet_ray
from deploy.config.errors import ConfigError


def sweep(
    config: ConfigPath,
    more: Annotated[list[str] | None, typer.Argument(metavar="[OBJECTIVE]...", show_default=False)] = None,
    objectives: Annotated[
        list[str] | None, typer.Option(help="alpha=0,.25,.5 or a name, grpo:kl_beta=.05; more may follow.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Runs of each.", show_default=False)] = None,
    staleness: Annotated[str, typer.Option(help="Forced staleness, 0,4,16,64: a study.", show_default=False)] = "",
    correction: Annotated[str, typer.Option(help="sequence,none: with and without.", show_default=False)] = "",
    name: Annotated[str, typer.Option(help="Folder under run.directory; default: run.name.", show_default=False)] = "",
    set_: Sets = None,
    view: Annotated[bool, typer.Option(help="The live view of each run.")] = False,
) -> int:
    """Compare objectives: one run of each per seed.

    Runs that are finished are not repeated, and the same command continues after a stop. `sieve report` shows the
    results.
    """
    settings = load_config(config, set_, "all")
    quiet_ray()
    from deploy.sweeps.plan import points
    from deploy.sweeps.runner import sweep as run_sweep

    chosen = settings.sweep
    words = [*(objectives or []), *(more or [])] or list(chosen.objectives)
    lags = _numbers("--staleness", staleness) if staleness else list(chosen.staleness)
    corrections = correction.split(",") if correction else list(chosen.correction)
    return run_sweep(
        settings, name or settings.run.name, points(words, lags, corrections), seeds or chosen.seeds, console(),
        command=shlex.join(["sieve", *sys.argv[1:]]), view=view,
    )  # fmt: skip


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError([f"{option} {text}: must be whole numbers separated by commas; write e.g. 0,4,16"]) from None


def evaluate(
    config: ConfigPath,
    checkpoint: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="A checkpoint, a version of weights/, or any exported model.", autocompletion=by_shell
        ),
    ],
    set_: Sets = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Repeat an evaluation that is there.")] = False,
    view: Annotated[bool, typer.Option(help="The live view; plain lines without.")] = True,
) -> int:
    """Evaluate a checkpoint beside the base model.

    pass@k, diversity, and how prompts moved between levels of difficulty, with the actors and verifiers of the run.
    `--set evaluation.samples=256` gives pass@256.
    """
    settings = load_config(config, set_, "all")
    quiet_ray()
    from deploy.sweeps.evaluate import evaluate as evaluate_checkpoint

    return evaluate_checkpoint(settings, checkpoint, console(), fresh=fresh, view=view)


def report_sweep(source: Path, document: Path | None) -> int:
    """Write the report of a sweep's directory or results.json, and a Markdown page at `document` if one is named."""
    from deploy.sweeps.html_report import write, write_document
    from deploy.sweeps.results import load as load_results

    results = load_results(source)
    written = write(results, source / "report") if source.is_dir() else []
    if document is not None:
        written += write_document(results, document)
    if not written:
        raise ConfigError([f"{source}: nothing to write; name a page with --document FILE.md"])
    for path in written:
        typer.echo(str(path))
    return EX_OK
