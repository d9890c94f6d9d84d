"""`sieve deadletter`: the completions that no verifier could judge, listed, shown and retried."""

from __future__ import annotations

from typing import Annotated

import typer

from broker.errors import EX_DATA, EX_OK
from broker.printable import indented, one_line
from deploy.cli.options import ConfigPath, Sets, load_config
from deploy.config.errors import ConfigError

deadletter = typer.Typer(help="List, show and retry completions that no verifier could judge.", rich_markup_mode=None)


@deadletter.command("list")
def list_dead(
    config: ConfigPath,
    set_: Sets = None,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 20,
) -> int:
    """One line per dead letter, newest first."""
    from broker.queue.admin_client import AdminClient
    from deploy.observe.status import open_broker

    with open_broker(load_config(config, set_, "none"), AdminClient) as connection:
        letters = connection.dead_letters(count)
        if not letters:
            typer.echo("no dead letters", err=True)
        for letter in letters:
            line = f"{letter.entry}  {letter.group_id}/{letter.idx}  {letter.verifier}  {letter.reason}"
            typer.echo(one_line(line))
    return EX_OK


@deadletter.command("show")
def show_dead(
    config: ConfigPath,
    entry: Annotated[str, typer.Argument(help="As printed by `deadletter list`.")],
    set_: Sets = None,
) -> int:
    """Everything that is known about one dead letter."""
    from broker.queue.admin_client import AdminClient
    from deploy.observe.status import open_broker

    with open_broker(load_config(config, set_, "none"), AdminClient) as connection:
        letters = {letter.entry: letter for letter in connection.dead_letters(10_000)}
    if entry not in letters:
        raise ConfigError([f"{entry}: no dead letter has this name; `sieve deadletter list CONFIG` prints the names"])
    letter = letters[entry]
    typer.echo(one_line(f"group       {letter.group_id}, completion {letter.idx}, {letter.payload_bytes} bytes"))
    typer.echo(f"verifier    {one_line(letter.verifier)}\nreason      {one_line(letter.reason)}")
    if letter.verdict is not None:
        v = letter.verdict
        said = one_line(f"{v.outcome} ({v.reason}) by {v.verifier} after {v.seconds:.3f} s")
        typer.echo(f"last verdict {said}\n{indented(v.detail)}")
    for attempt, line in enumerate(letter.history, 1):
        typer.echo(f"attempt {attempt}   {line}")
    return EX_OK


@deadletter.command("retry")
def retry_dead(
    config: ConfigPath,
    entries: Annotated[list[str] | None, typer.Argument(help="As printed by `deadletter list`.")] = None,
    set_: Sets = None,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters.")] = False,
) -> int:
    """Give dead letters back to their verifiers.

    Possible until their group is trained on or read; safe to repeat. Exit code 65 if one could not be retried.
    """
    settings = load_config(config, set_, "none")
    if bool(entries) == everything:
        raise ConfigError(["deadletter retry: name dead letters as `deadletter list` prints them, or give --all"])
    from broker.queue.admin_client import AdminClient
    from deploy.observe.status import open_broker

    with open_broker(settings, AdminClient) as connection:
        names = [letter.entry for letter in connection.dead_letters(10_000)] if everything else entries or []
        answers = []
        for name in names:
            answers.append(connection.retry_dead(name))
            typer.echo(f"{name}  {answers[-1]}")
    return EX_OK if all(answer == "retried" for answer in answers) else EX_DATA
