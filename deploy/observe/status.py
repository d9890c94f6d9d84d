"""`sieve status`, and the connection to a run's broker that `status`, `audit` and `deadletter` ask.

`open_broker` starts the run's private Redis on the run's own data where it is not running, for as long as the question
takes. Never changes the run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.live import Live

from broker.errors import EX_OK, EX_TEMPORARY, EX_UNAVAILABLE, BrokerUnavailable
from broker.plain_files import read_plain
from broker.printable import one_line
from broker.queue.admin_client import AdminClient
from broker.queue.connection import RunConnection
from broker.runtime.endpoint import answers, endpoint_path, read_endpoint, resolve_url
from broker.runtime.redis_server import Server
from broker.settings import BrokerSettings
from deploy.config.tree import Config
from deploy.observe.diagnosis import diagnose
from deploy.observe.exporter import queues_of_launcher
from deploy.observe.snapshot import Snapshot, outage, probe
from deploy.observe.stall import Stall
from deploy.observe.status_report import RunState, report
from deploy.observe.tail import Tail
from deploy.observe.view import render, steps_done, summary_line
from deploy.rundir.schema import check_schema
from learner.step_record import StepRecord

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


def status(config: Config, console: Console, *, watch: bool, as_json: bool = False) -> int:
    """Print the state of the run once, or follow it until Ctrl-C or its end; `as_json` prints a StatusReport per line.

    Returns the exit code: 0 when it moves or is finished, 75 when it is stalled, 69 when no broker answers and it is
    not finished. Raises SchemaError, RunConflict.
    """
    check_schema(config.run.path)
    view = _View(config, console, as_json)
    settings = _with_short_deadline(config)
    try:
        broker = AdminClient.connect(settings, config.run, url=resolve_url(settings, config.run))
    except BrokerUnavailable as error:
        return view.outage(error)
    try:
        return view.watch(broker) if watch else view.once(probe(broker))
    finally:
        broker.close()


def _with_short_deadline(config: Config) -> BrokerSettings:
    return config.broker.model_copy(update={"connect_seconds": min(ASK_SECONDS, config.broker.connect_seconds)})


class _View:
    """The answers to one `sieve status`."""

    def __init__(self, config: Config, console: Console, as_json: bool) -> None:
        self._config, self._console, self._json = config, console, as_json
        self._tail = Tail(config.run.path)
        self._name, self._steps = config.run.name, config.schedule.steps

    def once(self, snapshot: Snapshot) -> int:
        """The state that the broker reports."""
        record, stalls = self._tail.read(), self._diagnose(snapshot)
        if self._json:
            self._as_json(snapshot, record, stalls)
        elif self._console.is_terminal:
            self._console.print(self._screen(snapshot, record, stalls))
        else:
            self._lines(snapshot, record, stalls)
        if snapshot.depths is None:
            return EX_UNAVAILABLE
        return EX_TEMPORARY if stalls else EX_OK

    def watch(self, broker: AdminClient) -> int:
        """The state again and again, until the end of the run or Ctrl-C."""
        live = None if self._json else Live(console=self._console, refresh_per_second=2, transient=False)
        with live or nullcontext():
            try:
                while True:
                    snapshot = probe(broker)
                    record, stalls = self._tail.read(), self._diagnose(snapshot)
                    if live is None:
                        self._as_json(snapshot, record, stalls)
                    else:
                        live.update(self._screen(snapshot, record, stalls))
                    if snapshot.depths is not None and snapshot.depths.finished:
                        return EX_OK
                    time.sleep(WATCH_SECONDS)
            except KeyboardInterrupt:
                return EX_OK

    def outage(self, error: BrokerUnavailable) -> int:
        """The state of a run whose broker cannot be asked: from its metrics.jsonl, with the reason.

        That it has stopped is said of a run with a private Redis only, when neither that nor the launcher lives. Any
        other run may well go on where this command does not reach it.
        """
        record, snapshot = self._tail.read(), outage(error)
        finished = record is not None and record.step >= self._steps
        private = self._config.broker.url is None
        gone = private and (error.cause == "refused" or not endpoint_path(self._config.run).exists())
        stopped = gone and not _launcher_lives(self._config.run.path)
        state: RunState = "finished" if finished else "stopped" if stopped else "unknown"
        stalls = [] if finished or stopped else diagnose(snapshot)
        if self._json:
            self._as_json(snapshot, record, stalls, state)
        elif record is None and stopped:
            self._print(f"{self._name}: not running: {error}")
        elif state == "unknown":
            known = "" if record is None else f" (step {record.step}/{self._steps} by its metrics.jsonl)"
            self._print(f"{self._name}: the broker cannot be asked, so its state is not known here{known}")
            for stall in stalls:
                self._print(f"stalled: {stall}")
        else:
            said = "finished" if finished else "stopped; continue it with `sieve run CONFIG --resume`"
            self._print(f"{self._name}: step {steps_done(snapshot, record)}/{self._steps}, {said}")
        return EX_OK if finished else EX_UNAVAILABLE

    def _diagnose(self, snapshot: Snapshot) -> list[Stall]:
        """The stalls; what a live launcher starts by itself is no command for a person."""
        return diagnose(snapshot, queues_of_launcher(self._config) if snapshot.alive("launcher") else ())

    def _screen(self, snapshot: Snapshot, record: StepRecord | None, stalls: Sequence[Stall]) -> RenderableType:
        return render(snapshot, record, self._tail, self._name, self._steps, stalls)

    def _lines(self, snapshot: Snapshot, record: StepRecord | None, stalls: Sequence[Stall]) -> None:
        self._print(summary_line(snapshot, record, self._tail, self._steps))
        if record is None and snapshot.step:
            self._print(
                f"{self._config.run.path.absolute()}: holds no metrics.jsonl of it; the broker counts the steps"
            )
        for setting in snapshot.unsafe:
            self._print(f"unsafe: {one_line(setting)}")
        for heartbeat in snapshot.listed:
            self._print(f"{heartbeat.id}: {heartbeat.doing}, last heartbeat {heartbeat.age_seconds:.1f} s ago")
        for stall in stalls:
            self._print(f"stalled: {stall}")

    def _as_json(
        self, snapshot: Snapshot, record: StepRecord | None, stalls: Sequence[Stall], state: RunState | None = None
    ) -> None:
        if snapshot.depths is None:
            state = state or "unknown"
        else:
            state = "finished" if snapshot.depths.finished else "stalled" if stalls else "moving"
        found = report(self._name, self._steps, state, snapshot, record, stalls)
        self._console.out(found.model_dump_json(by_alias=True), highlight=False)

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)


def _launcher_lives(run: Path) -> bool:
    """Whether the process that locked the run directory last (deploy/rundir/lock.py) is still there."""
    try:
        os.kill(int(read_plain(run / "run.lock", 32)), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return True
