"""`sieve run`: all services of a run as Ray actors, restarted when they fail, drained on Ctrl-C, audited at the end.

    lock the run directory → Redis → Ray → units → supervise until the learner is done → let the others end → audit

The first Ctrl-C (or SIGTERM) drains: actors release their tickets, the learner writes a checkpoint and commits, Redis
saves its data, and `--resume` continues from there. The second one kills. Redis is stopped last: every service needs it
until its end.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

import ray
from ray.exceptions import RayError
from rich.console import Console

from broker.errors import EX_DATA, EX_OK, EX_UNAVAILABLE, SieveError
from broker.queue.admin_client import AdminClient
from broker.queue.heartbeat import Heartbeat
from broker.runtime.endpoint import answers, read_endpoint
from broker.runtime.metrics import close_log, open_log
from broker.runtime.redis_server import Server
from broker.runtime.service import UNREACHABLE
from deploy.config.tree import Config, plain
from deploy.launch.ray_units import Unit, Unplaceable, connect, make_units
from deploy.launch.restarts import KILLED
from deploy.observe.account import account
from deploy.observe.exporter import Exporter
from deploy.observe.tail import Tail
from deploy.observe.view import View
from deploy.rundir import run_files
from deploy.rundir.lock import RunDirectory

TICK_SECONDS = 0.1
SETTING_UP = ("starting", "connecting", "setting up")
"""Phases before a service works; past them it has started well."""
BEFORE_HOLDING = (*SETTING_UP, "loading", "stopped")
"""Phases of a learner that may still be refused."""
EX_INTERRUPTED = {signal.SIGINT: 130, signal.SIGTERM: 143}
log = logging.getLogger("sieve.launcher")


class LaunchError(SieveError):
    """The run cannot be kept up; message and exit code are those of the service that failed."""

    exit_code = EX_UNAVAILABLE

    def __init__(self, message: str, code: int = EX_UNAVAILABLE) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]


def launch(config: Config, console: Console, *, resume: bool, fresh: bool, live: bool) -> int:
    """Run until the learner is done or a signal stops the run.

    `resume` and `fresh` say what happens to a run that is in the run directory, `live` whether the view is redrawn in
    place. Returns the exit code: 0 finished, 130 or 143 stopped by SIGINT or SIGTERM. Raises SieveError when the run
    cannot be started or kept up, or its audit does not add up.
    """
    begin = time.time()
    with RunDirectory(config, resume=resume, fresh=fresh) as directory:
        handlers = open_log(log, "launcher", directory.path / "logs")
        log.removeHandler(handlers[1])  # the view has the terminal
        try:
            if directory.moved is not None:
                console.print(f"the run that was here is now {directory.moved}", highlight=False, soft_wrap=True)
            return _launch(config, console, live, begin, directory)
        finally:
            close_log(log, handlers)


def _launch(config: Config, console: Console, live: bool, begin: float, directory: RunDirectory) -> int:
    server, url = _server(config)
    outcome, code = "failed", EX_UNAVAILABLE
    try:
        # A Redis that does not answer, or holds a run of another schema, is refused before a service is started.
        AdminClient.connect(config.broker, config.run, url=url).close()
        exporter = Exporter(config, url, "launcher")
        try:
            tail = Tail(config.run.path)
            with View(console, config.run.name, config.schedule.steps, tail, live=live) as view:
                supervisor = Supervisor(config, url, server, exporter, view, directory.settle)
                code = supervisor.run()
                outcome = "finished" if code == EX_OK else "stopped"
        finally:
            exporter.close()
        problems = _audit(config, url)
        if problems:
            raise LaunchError(
                f"the audit does not add up: {'; '.join(problems[:5])}; keep {config.run.path} and report it", EX_DATA
            )
    finally:
        if server is not None:
            server.stop()
        seconds = round(time.time() - begin, 3)
        run_files.append_session(
            config.run.path, {"started": begin, "seconds": seconds, "outcome": outcome, "code": code}
        )
    took = f"{time.time() - begin:.0f} s"
    if outcome == "finished":
        text = f"finished after {took}: {config.run.path}; `sieve report CONFIG` shows the results"
    else:
        text = f"stopped after {took}: nothing committed is lost, --resume continues"
    console.print(text, soft_wrap=True)
    return code


def _server(config: Config) -> tuple[Server | None, str]:
    """(server to stop at the end, url) of the run's Redis: broker.url, one kept by `sieve broker`, or a new one."""
    if config.broker.url is not None:
        return None, config.broker.url.get_secret_value()
    endpoint = read_endpoint(config.run)
    if endpoint is not None and answers(endpoint.url):
        return None, endpoint.url
    server = Server.start(config.broker, config.run)
    return server, server.url


def _audit(config: Config, url: str) -> list[str]:
    """What does not add up. The account is saved in the run directory because a private Redis ends with the run."""
    broker = AdminClient.connect(config.broker, config.run, url=url)
    try:
        if broker.run_spec() is None:
            return []
        found = account(broker, config, deep=False)
    finally:
        broker.close()
    run_files.write_json(config.run.path / "audit.json", found.plain())
    return found.problems


class Supervisor:
    """The loop that starts the units, restarts what fails, and ends when the learner is done or a signal stops it."""

    def __init__(
        self,
        config: Config,
        url: str,
        server: Server | None,
        exporter: Exporter,
        view: View,
        accepted: Callable[[], None],
    ) -> None:
        """`accepted` is called while the learner of this session holds the run."""
        self._config, self._url, self._server, self._exporter, self._view = config, url, server, exporter, view
        self._accepted = accepted
        self._units: list[Unit] = []
        self._signals: list[signal.Signals] = []
        self._wait_until: float | None = None
        """Monotonic time at which units that still drain are killed; None before the drain."""
        self._reported: set[tuple[str, str]] = set()
        """Kind and queue of the stalls that are in the log and have not ended since."""

    def run(self) -> int:
        """The exit code: 0 finished, 130/143 stopped by signal. Raises LaunchError."""
        # A sweep starts Ray once for all of its runs: what was running before is left running.
        ours = not ray.is_initialized()
        if ours:
            connect(self._config)
        previous = {number: signal.signal(number, self._on_signal) for number in EX_INTERRUPTED}
        try:
            self._units = make_units(self._config, plain(self._config, secrets=True), self._url)
            while not self._step():
                self._show()
            self._show()
        except Unplaceable as error:
            raise LaunchError(str(error)) from None
        finally:
            for unit in self._units:
                unit.kill()
            if ours:
                ray.shutdown()
            for number, handler in previous.items():
                signal.signal(number, handler)
        return EX_INTERRUPTED[self._signals[0]] if self._signals else EX_OK

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(signal.Signals(number))

    def _step(self) -> bool:
        """One turn of the loop; True when every unit has ended or is to be killed."""
        if self._server is not None and self._server.ensure():
            self._say("Redis died and was started again on its own data")
        self._see_work()
        for unit in self._units:
            if not unit.done:
                self._attend(unit)
        over = all(unit.done for unit in self._units)
        if not over:
            self._drain()
            time.sleep(TICK_SECONDS)
        return over or self._forced()

    def _show(self) -> None:
        """Show the newest snapshot; a stall is also logged, once for as long as it lasts."""
        snapshot, stalls = self._exporter.snapshot, self._exporter.stalls
        for stall in stalls:
            if (stall.kind, stall.queue) not in self._reported:
                log.warning("stalled: %s", stall)
        self._reported = {(stall.kind, stall.queue) for stall in stalls}
        self._view.update(snapshot, stalls)

    def _see_work(self) -> None:
        """Note which units got past their set-up: a death after that is not a failed start."""
        self._note_work(self._exporter.snapshot.services)

    def _look_again(self) -> None:
        """See who works, asked anew: the exporter's snapshot may be older than the start of a service that ended."""
        try:
            broker = AdminClient.connect(self._config.broker, self._config.run, url=self._url)
            try:
                self._note_work(broker.services())
            finally:
                broker.close()
        except (*UNREACHABLE, SieveError) as error:
            log.warning("the heartbeats of an ended service cannot be read: %s", error)

    def _note_work(self, services: Sequence[Heartbeat]) -> None:
        working = {heartbeat.pid for heartbeat in services if heartbeat.phase not in SETTING_UP}
        for unit in self._units:
            unit.worked = unit.worked or all(process in working for process in unit.processes)
            holding = {heartbeat.pid for heartbeat in services if heartbeat.phase not in BEFORE_HOLDING}
            if unit.role == "learner" and holding.intersection(unit.processes):
                self._accepted()

    def _attend(self, unit: Unit) -> None:
        if unit.due is not None:
            if self._wait_until is not None:
                unit.done = True  # between two starts when the drain began: nothing to drain
            elif time.monotonic() >= unit.due:
                self._try(unit, unit.start)
            return
        end = unit.ended()
        if end is None:
            return
        log.info("%s ended: %d %s", unit.label, end.code, end.line)
        if self._wait_until is not None or (end.code == EX_OK and self._finished()):
            unit.done = True
            if unit.role == "learner":
                self._begin_drain("the run is finished" if not self._signals else "stopped")
            return
        if not unit.worked:
            self._look_again()
        lived = time.monotonic() - unit.started
        pause = unit.restarts.ended(end.code, lived, unit.worked)
        reason = end.line or f"exit {end.code}"
        reason_label = "killed" if end.code == KILLED else f"exit_{end.code}"
        self._exporter.metrics.restarts.labels(unit.role, reason_label).inc()
        if pause is None:
            self._give_up(unit, reason, end.code)
        self._say(f"{unit.label}: {reason}; starting again in {pause:g} s (failure {unit.restarts.row} in a row)")
        self._try(unit, unit.refresh)
        unit.due = time.monotonic() + pause

    def _try(self, unit: Unit, action: Callable[[], None]) -> None:
        """Start or refresh a unit; a process that dies meanwhile counts as one more failure of the unit."""
        try:
            action()
        except RayError as error:
            unit.running.clear()
            pause = unit.restarts.ended(KILLED, 0.0, False)
            if pause is None:
                self._give_up(unit, " ".join(str(error).split())[:300], KILLED)
            unit.due = time.monotonic() + pause

    def _give_up(self, unit: Unit, reason: str, code: int) -> NoReturn:
        row = unit.restarts.row
        why = f"{row} failures in a row" if row > 1 else "a restart would not help"
        self._begin_drain(f"{unit.label} failed")
        self._await_others(unit)
        raise LaunchError(f"{unit.label} does not stay up ({why}): {reason}", code if code > 0 else EX_UNAVAILABLE)

    def _await_others(self, failed: Unit) -> None:
        """Let the other units drain before the run ends with an error, so that nothing they hold is lost."""
        failed.done = True
        while not all(unit.done for unit in self._units) and not self._forced():
            for unit in self._units:
                if not unit.done and (unit.due is not None or unit.ended() is not None):
                    unit.done = True
            self._show()
            time.sleep(TICK_SECONDS)

    def _finished(self) -> bool:
        """Whether the run is finished, asked anew: the exporter's snapshot may be older than the learner's exit."""
        broker = AdminClient.connect(self._config.broker, self._config.run, url=self._url)
        try:
            return broker.finished()
        finally:
            broker.close()

    def _drain(self) -> None:
        if self._signals and self._wait_until is None:
            self._begin_drain(f"{self._signals[0].name}: draining, send it again to force")

    def _begin_drain(self, why: str) -> None:
        if self._wait_until is not None:
            return
        self._wait_until = time.monotonic() + self._config.launch.drain_seconds
        self._say(why)
        for unit in self._units:
            unit.stop(why)

    def _forced(self) -> bool:
        """Whether to stop waiting for the units that still drain."""
        late = self._wait_until is not None and time.monotonic() > self._wait_until
        if len(self._signals) < 2 and not late:
            return False
        limit = self._config.launch.drain_seconds
        why = "second signal" if len(self._signals) > 1 else f"not drained within launch.drain_seconds = {limit:g} s"
        left = ", ".join(unit.label for unit in self._units if not unit.done)
        self._say(f"{why}: killing {left}; what they held returns by its lease when the run is resumed")
        return True

    def _say(self, text: str) -> None:
        log.info("%s", text)
        self._view.event(text)
