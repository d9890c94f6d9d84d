"""The command line: every command takes the same CONFIG and the same `--set`, and ends with one line and a code.

Exit codes: 0 done; 64 a wrong command line or setting; 65 data that contradicts itself; 69 something needed is
unavailable; 70 our own fault; 75 try again later; 130 and 143 stopped by Ctrl-C or SIGTERM, resumable. Imports of
torch, ray and the rooms happen inside the command that needs them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from broker.errors import EX_DATA, EX_INTERNAL, EX_OK, EX_UNAVAILABLE, EX_USAGE, SieveError
from deploy.cli.deadletters import deadletter
from deploy.cli.options import ConfigPath, Sets, console, load_config, quiet_ray
from deploy.cli.sweep_commands import evaluate, report_sweep, sweep
from deploy.config.errors import ConfigError

app = typer.Typer(
    name="sieve",
    help="Asynchronous post-training toward what remains when the verifier has removed every wrong answer.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(deadletter, name="deadletter")

Index = Annotated[int, typer.Option(min=0, help="Position among the services of this role, shown by `sieve status`.")]


@app.command()
def run(
    config: ConfigPath,
    set_: Sets = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that is in the run directory.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move a run that is there aside, under its date.")] = False,
    view: Annotated[bool, typer.Option(help="The live view; plain lines without.")] = True,
) -> int:
    """Start everything and see it through.

    Ctrl-C drains and leaves a run that --resume goes on with; a second one forces.
    """
    settings = load_config(config, set_, "all")
    if resume and fresh:
        raise ConfigError(["--resume and --fresh: one goes on with the run, the other puts it aside; give one of them"])
    if settings.metrics.port:
        raise ConfigError(
            [
                f"metrics.port = {settings.metrics.port}: `sieve run` starts several services on one machine and only "
                f"one of "
                f"them can have it; set metrics.port = 0 (each takes a free port; {settings.run.path}/prometheus "
                f"lists them)"
            ]
        )
    quiet_ray()
    from deploy.launch.launcher import launch

    return launch(settings, console(), resume=resume, fresh=fresh, live=view)


@app.command()
def broker(config: ConfigPath, set_: Sets = None) -> int:
    """Keep the run's private Redis until Ctrl-C."""
    settings = load_config(config, set_, "settings")
    from broker.runtime.redis_server import Server, serve
    from deploy.observe.exporter import Exporter

    monitors: list[Exporter] = []

    def announce(server: Server) -> None:
        monitors.append(Exporter(settings, server.url, "broker"))
        typer.echo(f"{server.binary} for run {settings.run.name} in {server.directory}; Ctrl-C ends it")

    try:
        return serve(settings.broker, settings.run, announce)
    finally:
        for exporter in monitors:
            exporter.close()


@app.command()
def actor(config: ConfigPath, set_: Sets = None, index: Index = 0) -> int:
    """One actor: samples completions until the run is over."""
    from deploy.launch.roles import make

    return make("actor", load_config(config, set_, "settings"), index=index, url=None).run()


@app.command()
def verifier(
    config: ConfigPath,
    set_: Sets = None,
    index: Index = 0,
    name: Annotated[
        list[str] | None, typer.Option(help="Queue to serve; repeatable. Default: all.", show_default=False)
    ] = None,
) -> int:
    """One verifier: judges completions until the run is over."""
    from deploy.launch.roles import make

    return make("verifier", load_config(config, set_, "settings"), index=index, url=None, names=name or ()).run()


@app.command()
def learner(config: ConfigPath, set_: Sets = None) -> int:
    """The learner: opens the run, trains, publishes.

    Under torchrun: one rank of it.
    """
    from deploy.launch.roles import make
    from deploy.rundir.schema import mark_schema

    settings = load_config(config, set_, "all")
    mark_schema(settings.run.path)  # what the learner writes makes the directory a run
    return make("learner", settings, index=int(os.environ.get("RANK", "0")), url=None).run()


@app.command("config")
def show_config(config: ConfigPath, set_: Sets = None) -> int:
    """Validate and print the configuration."""
    from deploy.config.tree import dump

    typer.echo(dump(load_config(config, set_, "all")), nl=False)
    return EX_OK


@app.command()
def doctor(config: ConfigPath, set_: Sets = None) -> int:
    """What this machine lacks to serve the configuration; exit code 69 when something is missing."""
    from deploy.config.doctor import examine

    fine = True
    for finding in examine(load_config(config, set_, "none")):
        typer.echo(f"{'ok     ' if finding.fine else 'MISSING'}  {finding.subject}: {finding.text}")
        fine = fine and finding.fine
    return EX_OK if fine else EX_UNAVAILABLE


@app.command()
def status(
    config: ConfigPath,
    set_: Sets = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow until the end.")] = False,
) -> int:
    """Progress, queues, services, and what is stuck.

    Exit code 75 when an edge of the graph is stuck, 69 when no broker answers.
    """
    settings = load_config(config, set_, "none")
    from deploy.observe.status import status as show

    return show(settings, console(), watch=watch)


@app.command()
def report(
    config: ConfigPath,
    set_: Sets = None,
    document: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Of a sweep: also a Markdown page.", show_default=False)
    ] = None,
) -> int:
    """What came out: of a run table, summary.json, report.png.

    Of a sweep (its directory, or a results.json) frontier, curves, raw counts and one HTML page, in its report/.
    """
    from deploy.sweeps.results import is_sweep

    if is_sweep(config):
        return report_sweep(config, document)
    if document is not None:
        raise ConfigError([f"--document: {config} is no sweep (it has no sweep.json); leave the option out"])
    settings = load_config(config, set_, "none")
    # A run that was moved aside still says its old path in its own config.yaml.
    path = config.resolve() if config.is_dir() else settings.run.path
    from deploy.reports.report import show, write
    from deploy.reports.summary import summarize

    built = summarize(path)
    shown = console()
    show(built, shown)
    for file in write(built, path):
        shown.print(str(file), highlight=False, soft_wrap=True)
    return EX_OK


app.command()(sweep)
app.command("eval")(evaluate)


@app.command()
def audit(config: ConfigPath, set_: Sets = None) -> int:
    """Account for every group and completion.

    JSON; exit code 65 if anything was lost or trained twice.
    """
    settings = load_config(config, set_, "none")
    import json

    from deploy.observe.status import open_broker

    with open_broker(settings) as connection:
        counted = connection.audit()
    typer.echo(json.dumps({**counted.model_dump(), "lost": counted.lost}, indent=2))
    return EX_DATA if counted.lost or counted.duplicates else EX_OK


def main() -> None:
    """The `sieve` command: errors meant for people become one line each, anything else keeps its traceback."""
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except ConfigError as error:
        for problem in error.problems:
            typer.echo(f"sieve: {problem}", err=True)
        code = error.exit_code
    except SieveError as error:
        typer.echo(f"sieve: {error}", err=True)
        code = error.exit_code
    except typer.TyperException as error:
        # Of the parser: an unknown command or option, a missing argument.
        message = getattr(error, "format_message", error.__str__)()
        typer.echo(f"sieve: {' '.join(message.split())}; see `sieve --help`", err=True)
        code = EX_USAGE
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read has seen enough
        code = EX_OK
    sys.exit(code if isinstance(code, int) else EX_OK if code is None else EX_INTERNAL)
