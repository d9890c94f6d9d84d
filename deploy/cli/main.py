"""The command `sieve`: one function per command, each of which calls one function of another folder.

Exit codes: 0 done; 64 a wrong command line or setting; 65 data that contradicts itself; 69 something needed is
unavailable; 70 a fault of sieve; 75 try again later; 130 and 143 stopped by Ctrl-C or SIGTERM, resumable. Everything
but the parser is imported inside the command that needs it.
"""

from __future__ import annotations

import os
import sys
import traceback
import typing
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from broker.errors import EX_DATA, EX_INTERNAL, EX_OK, EX_UNAVAILABLE, EX_USAGE, SieveError, redact
from broker.printable import one_line, printable
from deploy.cli.deadletters import deadletter
from deploy.cli.init_command import init
from deploy.cli.judge_command import judge
from deploy.cli.options import ConfigPath, Sets, by_shell, console, load_config, quiet_ray
from deploy.cli.sweep_commands import evaluate, report_sweep, sweep
from deploy.config.errors import ConfigError

RUN, SERVE, LOOK, COMPARE = "Run", "Single services, started by hand", "Look at a run", "Compare"
"""Sections of `sieve --help`, in this order."""


class Sections(TyperGroup):
    """A group of commands whose help lists them by section (`rich_help_panel`), in plain text: rich takes 0.1 s."""

    def format_commands(self, ctx: typing.Any, formatter: typing.Any) -> None:
        width = max(len(name) for name in self.commands)
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            title = getattr(command, "rich_help_panel", None) or "Commands"
            text = command.get_short_help_str(formatter.width - width - 6)
            sections.setdefault(str(title), []).append((name.ljust(width), text))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"sieve {version('sieve-rl')}")
        raise typer.Exit


app = typer.Typer(
    name="sieve",
    cls=Sections,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def sieve(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Asynchronous post-training of language models toward what remains of the base model's answers when a verifier
    has removed the wrong ones.

    Begin with `sieve init`, which writes a configuration, and `sieve run`.
    """


Index = Annotated[int, typer.Option(min=0, help="Position among the services of this role, as `sieve status` shows.")]

app.command(rich_help_panel=RUN)(init)


@app.command("config", rich_help_panel=RUN)
def show_config(config: ConfigPath, set_: Sets = None) -> int:
    """Check the configuration and print all of it.

    Every setting with its value, defaults included; or one line for each problem, and exit code 64.
    """
    from deploy.config.tree import dump

    typer.echo(printable(dump(load_config(config, set_, "all")), lines=True), nl=False)
    return EX_OK


@app.command(rich_help_panel=RUN)
def doctor(config: ConfigPath, set_: Sets = None) -> int:
    """Check what this machine lacks for the configuration.

    The broker's server, the model and prompts, the engine's packages, and every verifier. Exit code 69 when something
    is missing.
    """
    settings = load_config(config, set_, "none")
    from deploy.config.doctor import examine

    fine = True
    for finding in examine(settings):
        found = printable(f"{finding.subject}: {finding.text}")
        typer.echo(f"{'ok     ' if finding.fine else 'MISSING'}  {found}")
        fine = fine and finding.fine
    return EX_OK if fine else EX_UNAVAILABLE


@app.command(rich_help_panel=RUN)
def run(
    config: ConfigPath,
    set_: Sets = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run that is in the run directory.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move a run that is there aside, under its date.")] = False,
    view: Annotated[bool, typer.Option(help="The live view; plain lines without.")] = True,
) -> int:
    """Start all services and train to the end.

    The first Ctrl-C drains: nothing committed is lost, and --resume continues. The second one kills.
    """
    settings = load_config(config, set_, "all")
    if resume and fresh:
        raise ConfigError(["--resume and --fresh: one continues the run, the other moves it aside; give one of them"])
    if settings.metrics.port:
        raise ConfigError([
            f"metrics.port = {settings.metrics.port}: `sieve run` starts several services on one machine, and only one "
            f"of them can have it; set metrics.port = 0 (each takes a free port; {settings.run.path}/prometheus lists "
            f"them)"
        ])  # fmt: skip
    quiet_ray()
    from deploy.launch.launcher import launch

    return launch(settings, console(), resume=resume, fresh=fresh, live=view)


@app.command(rich_help_panel=RUN)
def resume(
    config: ConfigPath,
    set_: Sets = None,
    step: Annotated[
        int | None,
        typer.Option("--from", min=0, metavar="STEP", help="Go back to this committed checkpoint; 0: the base model."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the steps that --from can go back to.")] = False,
    view: Annotated[bool, typer.Option(help="The live view; plain lines without.")] = True,
) -> int:
    """Continue a run from its last checkpoint, or an earlier one.

    With --from, the steps after that checkpoint are taken back: their groups are sampled and trained again, and so are
    all that were in work. It is the remedy for a damaged checkpoint and for training that went wrong.
    """
    settings = load_config(config, set_, "all")
    from deploy.launch.rollback import checkpoints, roll_back

    if list_:
        for at, name in checkpoints(settings).items():
            typer.echo(f"{at} {name}")
        return EX_OK
    if step is not None:
        typer.echo(roll_back(settings, step))
    quiet_ray()
    from deploy.launch.launcher import launch

    return launch(settings, console(), resume=True, fresh=False, live=view)


@app.command(rich_help_panel=SERVE)
def broker(config: ConfigPath, set_: Sets = None) -> int:
    """The run's private Redis, until Ctrl-C."""
    settings = load_config(config, set_, "settings")
    from broker.runtime.redis_server import Server, serve
    from deploy.observe.exporter import Exporter

    exporters: list[Exporter] = []

    def announce(server: Server) -> None:
        exporters.append(Exporter(settings, server.url, "broker"))
        typer.echo(f"{server.binary} for run {settings.run.name} in {server.directory}; Ctrl-C ends it")

    try:
        return serve(settings.broker, settings.run, announce)
    finally:
        for exporter in exporters:
            exporter.close()


@app.command(rich_help_panel=SERVE)
def actor(config: ConfigPath, set_: Sets = None, index: Index = 0) -> int:
    """An actor: samples completions until the run is over."""
    settings = load_config(config, set_, "settings")
    from deploy.launch.roles import make

    return make("actor", settings, index=index, url=None).run()


@app.command(rich_help_panel=SERVE)
def verifier(
    config: ConfigPath,
    set_: Sets = None,
    index: Index = 0,
    name: Annotated[
        list[str] | None, typer.Option(help="Queue to serve; repeatable. Default: all.", show_default=False)
    ] = None,
) -> int:
    """A verifier: judges completions until the run is over."""
    settings = load_config(config, set_, "settings")
    from deploy.launch.roles import make

    return make("verifier", settings, index=index, url=None, names=name or ()).run()


@app.command(rich_help_panel=SERVE)
def learner(config: ConfigPath, set_: Sets = None) -> int:
    """The learner: opens the run, trains, publishes weights.

    Under torchrun it is one rank.
    """
    settings = load_config(config, set_, "all")
    from deploy.launch.roles import make
    from deploy.rundir.schema import mark_schema

    mark_schema(settings.run.path)  # what the learner writes makes the directory a run
    return make("learner", settings, index=int(os.environ.get("RANK", "0")), url=None).run()


@app.command(rich_help_panel=LOOK)
def status(
    config: ConfigPath,
    set_: Sets = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow until the end.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object in a line, for programs.")] = False,
) -> int:
    """Progress, queues, services, and what is stuck.

    Exit code 75 when something cannot move, 69 when no broker answers. docs/reference/status.md lists what can be
    stuck, and the fields of --json.
    """
    settings = load_config(config, set_, "none")
    from deploy.observe.status import status as show

    return show(settings, console(), watch=watch, as_json=json)


@app.command(rich_help_panel=LOOK)
def report(
    config: ConfigPath,
    set_: Sets = None,
    document: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.md", help="Of a sweep: a Markdown page too.", show_default=False, autocompletion=by_shell
        ),
    ] = None,
) -> int:
    """Results of a run or a sweep: tables, plots, JSON.

    Of a run: a table, report/summary.json and report/report.png. Of a sweep, named by its directory or a results.json:
    the frontier, curves, raw counts and one HTML page, in its report/.
    """
    from deploy.sweeps.results import is_sweep

    if is_sweep(config):
        return report_sweep(config, document)
    if document is not None:
        raise ConfigError([f"--document: {config} is no sweep (it has no sweep.json); leave the option out"])
    settings = load_config(config, set_, "none")
    # The config.yaml of a run that was moved aside names its former directory.
    path = config.resolve() if config.is_dir() else settings.run.path
    from deploy.reports.report import show, write
    from deploy.reports.summary import summarize

    built = summarize(path)
    shown = console()
    show(built, shown)
    for file in write(built, path):
        shown.print(str(file), highlight=False, soft_wrap=True)
    return EX_OK


@app.command(rich_help_panel=LOOK)
def audit(
    config: ConfigPath,
    set_: Sets = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read all checkpoints and versions too.")] = False,
) -> int:
    """Account for every group and completion, as JSON.

    Asks the run's broker, and recounts from the run's files. Exit code 65 if anything was lost or trained twice, or if
    the two contradict each other: `problems` says where.
    """
    settings = load_config(config, set_, "none")
    import json

    from broker.queue.admin_client import AdminClient
    from deploy.observe.account import account
    from deploy.observe.status import open_broker

    with open_broker(settings, AdminClient) as connection:
        found = account(connection, settings, deep=deep)
    typer.echo(json.dumps(found.plain(), indent=2))
    for problem in found.problems:
        typer.echo(f"sieve: {problem}", err=True)
    return EX_DATA if found.problems else EX_OK


app.add_typer(deadletter, name="deadletter", rich_help_panel=LOOK)
app.command(rich_help_panel=LOOK)(judge)
app.command(rich_help_panel=COMPARE)(sweep)
app.command("eval", rich_help_panel=COMPARE)(evaluate)


def main() -> typing.NoReturn:
    """Run the command line; errors meant for people are one line each on stderr, others a printable traceback."""
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except SieveError as error:
        for problem in getattr(error, "problems", (str(error),)):  # a ConfigError has several
            typer.echo(f"sieve: {problem}", err=True)
        code = error.exit_code
    except typer.TyperException as error:
        # Of the parser: an unknown command or option, a missing argument.
        message = getattr(error, "format_message", error.__str__)()
        typer.echo(f"sieve: {one_line(message)}; see `sieve --help`", err=True)
        code = EX_USAGE
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has closed the pipe
        code = EX_OK
    except Exception:
        typer.echo(printable(redact(traceback.format_exc()), lines=True), err=True)
        code = EX_INTERNAL
    sys.exit(code if isinstance(code, int) else EX_OK if code is None else EX_INTERNAL)
