"""The command line: every command takes the same CONFIG and the same `--set`, and ends with one line and a code.

Exit codes: 0 done; 64 a wrong command line or setting; 65 data that contradicts itself; 69 something needed is
unavailable; 70 our own fault; 75 try again later; 130 and 143 stopped by Ctrl-C or SIGTERM, resumable. Imports of
torch, ray and the rooms happen inside the command that needs them.
"""

from __future__ import annotations

import os
import shlex
import sys
import typing
from pathlib import Path
from typing import Annotated

import typer

from broker.errors import EX_DATA, EX_INTERNAL, EX_OK, EX_USAGE, SieveError
from deploy.config import Checks, Config, ConfigError, dump, load

if typing.TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="sieve",
    help="Asynchronous post-training toward what remains when the verifier has removed every wrong answer.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
deadletter = typer.Typer(help="Completions that no verifier could judge.", rich_markup_mode=None)
app.add_typer(deadletter, name="deadletter")

ConfigPath = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file, or a run directory.", show_default=False)
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; repeatable.", show_default=False),
]
Index = Annotated[int, typer.Option(min=0, help="Position among the services of this role, shown by `sieve status`.")]


def console() -> Console:
    """The terminal, which takes text as it stands: messages of libraries may hold what rich would read as markup."""
    from rich.console import Console

    return Console(markup=False, emoji=False)


def _load(path: Path, sets: list[str] | None, check: Checks) -> Config:
    return load(path / "config.yaml" if path.is_dir() else path, sets or (), check=check)


def _quiet_ray() -> None:
    """What Ray reads when it is imported: no usage statistics, no new default announced on every start, and services
    at normal priority (Ray would run them at 15, behind everything else on the machine)."""
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


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
    settings = _load(config, set_, "all")
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
    _quiet_ray()
    from deploy.launch import launch

    return launch(settings, console(), resume=resume, fresh=fresh, live=view)


@app.command()
def broker(config: ConfigPath, set_: Sets = None) -> int:
    """Keep the run's private Redis until Ctrl-C."""
    settings = _load(config, set_, "settings")
    from broker.server import Server, serve
    from deploy.monitor import Monitor

    monitors: list[Monitor] = []

    def announce(server: Server) -> None:
        monitors.append(Monitor(settings, server.url, "broker"))
        typer.echo(f"{server.binary} for run {settings.run.name} in {server.directory}; Ctrl-C ends it")

    try:
        return serve(settings.broker, settings.run, announce)
    finally:
        for monitor in monitors:
            monitor.close()


@app.command()
def actor(config: ConfigPath, set_: Sets = None, index: Index = 0) -> int:
    """One actor: samples completions until the run is over."""
    from deploy.roles import make

    return make("actor", _load(config, set_, "settings"), index=index, url=None).run()


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
    from deploy.roles import make

    return make("verifier", _load(config, set_, "settings"), index=index, url=None, names=name or ()).run()


@app.command()
def learner(config: ConfigPath, set_: Sets = None) -> int:
    """The learner: opens the run, trains, publishes.

    Under torchrun: one rank of it.
    """
    from deploy.roles import make

    return make("learner", _load(config, set_, "all"), index=int(os.environ.get("RANK", "0")), url=None).run()


@app.command("config")
def show_config(config: ConfigPath, set_: Sets = None) -> int:
    """Validate and print the configuration."""
    typer.echo(dump(_load(config, set_, "all")), nl=False)
    return EX_OK


@app.command()
def status(
    config: ConfigPath,
    set_: Sets = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow until the end.")] = False,
) -> int:
    """Progress, queues, services, and what is stuck.

    Exit code 75 when an edge of the graph is stuck, 69 when no broker answers.
    """
    settings = _load(config, set_, "none")
    from deploy.status import status as show

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
    from deploy.collect import is_sweep

    if is_sweep(config):
        return _report_sweep(config, document)
    if document is not None:
        raise ConfigError([f"--document: {config} is no sweep (it has no sweep.json); leave the option out"])
    settings = _load(config, set_, "none")
    # A run that was moved aside still says its old path in its own config.yaml.
    path = config.resolve() if config.is_dir() else settings.run.path
    from deploy.report import build, show, write

    built = build(path)
    shown = console()
    show(built, shown)
    for file in write(built, path):
        shown.print(str(file), highlight=False, soft_wrap=True)
    return EX_OK


@app.command()
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

    Runs that are done are not done again; the same command goes on after a stop. `sieve report` shows what came out.
    """
    settings = _load(config, set_, "all")
    _quiet_ray()
    from deploy.plan import points
    from deploy.sweep import sweep as carry_out

    chosen = settings.sweep
    words = [*(objectives or []), *(more or [])] or list(chosen.objectives)
    lags = _numbers("--staleness", staleness) if staleness else list(chosen.staleness)
    corrections = correction.split(",") if correction else list(chosen.correction)
    return carry_out(
        settings, name or settings.run.name, points(words, lags, corrections), seeds or chosen.seeds, console(),
        command=shlex.join(["sieve", *sys.argv[1:]]), view=view,
    )  # fmt: skip


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError([f"{option} {text}: not whole numbers with commas between them; write 0,4,16"]) from None


def _report_sweep(source: Path, document: Path | None) -> int:
    from deploy.collect import load as load_results
    from deploy.page import write, write_document

    results = load_results(source)
    written = write(results, source / "report") if source.is_dir() else []
    if document is not None:
        written += write_document(results, document)
    if not written:
        raise ConfigError([f"{source}: say where to with --document FILE.md"])
    for path in written:
        typer.echo(str(path))
    return EX_OK


@app.command("eval")
def evaluate(
    config: ConfigPath,
    checkpoint: Annotated[
        Path, typer.Option(metavar="DIR", help="A checkpoint, a version of weights/, or any exported model.")
    ],
    set_: Sets = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Evaluate again what was evaluated before.")] = False,
    view: Annotated[bool, typer.Option(help="The live view; plain lines without.")] = True,
) -> int:
    """Evaluate a checkpoint beside the base: pass@k, diversity, migration.

    Through the same actors and verifiers as the run. `--set evaluation.samples=256` gives pass@256.
    """
    settings = _load(config, set_, "all")
    _quiet_ray()
    from deploy.evaluate import evaluate as through_the_lane

    return through_the_lane(settings, checkpoint, console(), fresh=fresh, view=view)


@app.command()
def audit(config: ConfigPath, set_: Sets = None) -> int:
    """Account for every group and completion.

    JSON; exit code 65 if anything was lost or trained twice.
    """
    settings = _load(config, set_, "none")
    import json

    from deploy.status import open_broker

    with open_broker(settings) as connection:
        counted = connection.audit()
    typer.echo(json.dumps({**counted.model_dump(), "lost": counted.lost}, indent=2))
    return EX_DATA if counted.lost or counted.duplicates else EX_OK


@deadletter.command("list")
def list_dead(
    config: ConfigPath,
    set_: Sets = None,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Newest first.")] = 20,
) -> int:
    """One line per completion that was given up on."""
    from deploy.status import open_broker

    with open_broker(_load(config, set_, "none")) as connection:
        letters = connection.dead_letters(count)
        if not letters:
            typer.echo("no dead letters")
        for letter in letters:
            typer.echo(f"{letter.entry}  {letter.gid}/{letter.idx}  {letter.verifier}  {letter.reason}")
    return EX_OK


@deadletter.command("show")
def show_dead(
    config: ConfigPath,
    entry: Annotated[str, typer.Argument(help="As printed by `deadletter list`.")],
    set_: Sets = None,
) -> int:
    """Everything known about one of them."""
    from deploy.status import open_broker

    with open_broker(_load(config, set_, "none")) as connection:
        letters = {letter.entry: letter for letter in connection.dead_letters(10_000)}
    if entry not in letters:
        raise ConfigError([f"{entry}: no dead letter of that name; `sieve deadletter list CONFIG` prints the names"])
    letter = letters[entry]
    typer.echo(f"group       {letter.gid}, completion {letter.idx}, {letter.payload_bytes} bytes")
    typer.echo(f"verifier    {letter.verifier}\nreason      {letter.reason}")
    if letter.verdict is not None:
        v = letter.verdict
        typer.echo(f"last verdict {v.outcome} ({v.reason}) by {v.verifier} after {v.seconds:.3f} s\n{v.detail}")
    return EX_OK


@deadletter.command("retry")
def retry_dead(
    config: ConfigPath,
    entries: Annotated[list[str] | None, typer.Argument(help="As printed by `deadletter list`.")] = None,
    set_: Sets = None,
    everything: Annotated[bool, typer.Option("--all", help="Every dead letter there is.")] = False,
) -> int:
    """Let verifiers try them again.

    Possible while the group is not trained or read yet; safe to repeat. Exit code 65 if any could not be retried.
    """
    settings = _load(config, set_, "none")
    if bool(entries) == everything:
        raise ConfigError(["deadletter retry: name dead letters as `deadletter list` prints them, or give --all"])
    from deploy.status import open_broker

    with open_broker(settings) as connection:
        names = [letter.entry for letter in connection.dead_letters(10_000)] if everything else entries or []
        answers = []
        for name in names:
            answers.append(connection.retry_dead(name))
            typer.echo(f"{name}  {answers[-1]}")
    return EX_OK if all(answer == "retried" for answer in answers) else EX_DATA


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


if __name__ == "__main__":
    main()
