"""`sieve status`, and the connection to a run's broker that `status`, `audit` and `deadletter` ask.

`open_broker` starts the run's private Redis on the run's own data where it is not running, for as long as the question
takes. Never changes the run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.live import Live

from broker.errors import EX_OK, EX_TEMPORARY, EX_UNAVAILABLE, BrokerUnavailable
from broker.printable import one_line
from broker.queue.admin_client import AdminClient
from broker.queue.connection import RunConnection
from broker.runtime.endpoint import answers, read_endpoint, resolve_url
from broker.runtime.redis_server import Server
from broker.settings import BrokerSettings
from deploy.config.tree import Config
from deploy.observe.snapshot import Snapshot, probe
from deploy.observe.stall import diagnose
from deploy.observe.tail import Tail
from deploy.observe.view import render, summary_line
from deploy.rundir.schema import check_schema

ClientT = TypeVar("ClientT", bound=RunConnection)

ASK_SECONDS = 3.0
"""Deadline for reaching Redis, shorter than a service's: a person is waiting at the terminal."""
WATCH_SECONDS = 1.0
"""Time between two probes of `sieve status --watch`."""


@contextmanager
def open_broker(config: Config, kind: type[ClientT]) -> Iterator[ClientT]:
    """A connection to the run's Redis, which is started for this question where it is private and not running.

    Raises:
        BrokerUnavailable: Redis cannot be reached or started, or the run directory has none.
        SchemaError: the run directory is of another schema.
    """
    check_schema(config.run.path)
    settings = _with_short_deadline(config)
    server: Server | None = None
    endpoint = read_endpoint(config.run) if settings.url is None else None
    if settings.url is None and (endpoint is None or not answers(endpoint.url)):
        if not (config.run.path / "redis").is_dir():
            raise BrokerUnavailable(f"{config.run.path}: holds no run; start one with `sieve run CONFIG`")
        server = Server.start(config.broker, config.run)
    try:
        broker = kind.connect(settings, config.run, url=server.url if server else resolve_url(settings, config.run))
        try:
            yield broker
        finally:
            broker.close()
    finally:
        if server is not None:
            server.stop()


def status(config: Config, console: Console, *, watch: bool) -> int:
    """Print the state of the run once, or follow it until Ctrl-C or its end.

    Returns the exit code: 0 when it moves or is finished, 75 when it is stalled, 69 when no broker answers and it is
    not finished. Raises SchemaError.
    """
    check_schema(config.run.path)
    tail = Tail(config.run.path)
    settings = _with_short_deadline(config)
    try:
        broker = AdminClient.connect(settings, config.run, url=resolve_url(settings, config.run))
    except BrokerUnavailable as error:
        return _show_stopped(config, console, tail, str(error))
    try:
        return _watch(config, console, tail, broker) if watch else _show(config, console, tail, probe(broker))
    finally:
        broker.close()


def _with_short_deadline(config: Config) -> BrokerSettings:
    return config.broker.model_copy(update={"connect_seconds": min(ASK_SECONDS, config.broker.connect_seconds)})


def _show_stopped(config: Config, console: Console, tail: Tail, error: str) -> int:
    """The state of a run whose broker does not answer, from its metrics.jsonl."""
    record = tail.read()
    if record is None:
        _print(console, f"{config.run.name}: not running: {error}")
        return EX_UNAVAILABLE
    finished = record.step >= config.schedule.steps
    state = "finished" if finished else "stopped; continue it with `sieve run CONFIG --resume`"
    _print(console, f"{config.run.name}: step {record.step}/{config.schedule.steps}, {state}")
    return EX_OK if finished else EX_UNAVAILABLE


def _show(config: Config, console: Console, tail: Tail, snapshot: Snapshot) -> int:
    record, stalls = tail.read(), diagnose(snapshot)
    if console.is_terminal:
        console.print(render(snapshot, record, tail, config.run.name, config.schedule.steps, stalls))
    else:
        _print(console, summary_line(snapshot, record, tail, config.schedule.steps))
        for setting in snapshot.unsafe:
            _print(console, f"unsafe: {one_line(setting)}")
        for heartbeat in snapshot.services:
            waits = f", waits on {heartbeat.waiting_on}" if heartbeat.waiting_on else ""
            seconds = max(0.0, snapshot.at - heartbeat.since)
            age = f"last heartbeat {heartbeat.age_seconds:.1f} s ago"
            _print(console, f"{heartbeat.id}: {heartbeat.phase}{waits} for {seconds:.0f} s, {age}")
        for stall in stalls:
            _print(console, f"stalled: {stall}")
    return EX_TEMPORARY if stalls else EX_OK


def _watch(config: Config, console: Console, tail: Tail, broker: AdminClient) -> int:
    with Live(console=console, refresh_per_second=2, transient=False) as live:
        try:
            while True:
                snapshot = probe(broker)
                stalls = diagnose(snapshot)
                live.update(render(snapshot, tail.read(), tail, config.run.name, config.schedule.steps, stalls))
                if snapshot.depths is not None and snapshot.depths.finished:
                    return EX_OK
                time.sleep(WATCH_SECONDS)
        except KeyboardInterrupt:
            return EX_OK


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
