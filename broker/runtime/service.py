"""The base of every service: connection, heartbeat, HTTP endpoints, main loop, drain and exit code.

    run()  =  log → /metrics → connect (deadline) → heartbeat thread → setup() → step(), step(), … → drain() → exit code

Rules for a subclass. `step()` does a bounded piece of work and returns. It must be safe to repeat: after an outage of
Redis that outlasts the retries of one call, it is called again. A service blocks only in `wait` or `waiting`, which
name what is waited for. Phase names and wait reasons are fixed words in the code (they are metric labels), never data.
A service ends by `finish` from inside (nothing left to do), or by `request_stop`, SIGTERM or SIGINT from outside; both
drain and exit 0.

During an outage calls of `self.broker` retry by themselves for up to broker.connect_seconds. Meanwhile the heartbeat
notices within a few seconds, shows the phase `broker unreachable`, and ends the service with 69 when it lasts longer.

Knows nothing of what flows through the system: of the broker's clients it uses only connect, heartbeat and close.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ClassVar, Generic, Protocol, TypeVar

import redis
from prometheus_client import CollectorRegistry

from broker.errors import (
    EX_INTERNAL,
    EX_OK,
    EX_TEMPORARY,
    EX_UNAVAILABLE,
    BrokerFull,
    BrokerUnavailable,
    Fenced,
    SieveError,
)
from broker.queue.connection import RunConnection
from broker.queue.heartbeat import BEATS_PER_LEASE, Heartbeat, Role
from broker.runtime.activity import Activity
from broker.runtime.endpoint import resolve_url
from broker.runtime.metrics import BaseMetrics, MetricsServer, build_version, close_log, open_log
from broker.runtime.signals import stop_signals
from broker.settings import BrokerSettings, MetricsSettings, RunSettings

FULL_SECONDS = 600.0
"""Longest wait for room in a full Redis: commits free it, unless every service is stuck."""
PROBE_SECONDS = 1.0
"""Deadline of one try of the heartbeat or the first connection; between tries the service reacts to a stop."""
UNREACHABLE = (BrokerUnavailable, redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)

T = TypeVar("T")
ClientT = TypeVar("ClientT", bound=RunConnection)


class _Stopped(Exception):
    """The service was stopped before it was connected, with nothing to drain."""


class ServiceConfig(Protocol):
    """The sections of the configuration that this base reads; each service's own configuration has more."""

    @property
    def run(self) -> RunSettings: ...
    @property
    def broker(self) -> BrokerSettings: ...
    @property
    def metrics(self) -> MetricsSettings: ...


class Service(ABC, Generic[ClientT]):
    """One service, in a process or a Ray actor. A subclass sets `role` and `client` and has setup, step and drain."""

    role: ClassVar[Role]
    client: type[ClientT]
    """The broker client of this role; `self.broker` is one."""
    grace_seconds: float = 30.0
    """From the stop signal to the forced end (exit 75). What is still held then returns to other services when its
    lease expires."""
    stall_seconds: float = 900.0
    """/healthz answers 503 when the loop has made no progress for this long."""

    def __init__(self, config: ServiceConfig, *, index: int = 0, url: str | None = None) -> None:
        self.index = index
        self.host = socket.gethostname()
        self.id = f"{self.role}-{index}-{self.host[:32]}-{os.getpid()}-{secrets.token_hex(3)}"
        self.broker: ClientT
        self.registry = CollectorRegistry()
        self.log = logging.getLogger(f"sieve.{self.id}")
        self.stopping = threading.Event()
        self.finished = threading.Event()
        self.values: dict[str, float] = {}
        """Metrics sent with the heartbeat, for `sieve status`."""
        self.queues: tuple[str, ...] = ()
        """Verify queues that this service serves, sent with the heartbeat; set by the verifying service only."""
        self.metrics_url = ""
        self._config = config
        self._url = url
        self._trouble = ("", "")
        self._ready = False
        self._failure: tuple[int, str] | None = None
        self._silent = threading.Event()
        self._measured = BaseMetrics(self.registry, self.role)
        self._activity = Activity(self._measured)

    # --- for subclasses to implement

    @abstractmethod
    def setup(self) -> None:
        """Called once, after the first heartbeat. Calls that must survive an outage go through `retrying`."""

    @abstractmethod
    def step(self) -> None:
        """One bounded piece of work; called until the service is stopped or finished."""

    def drain(self) -> None:
        """Finish or release what is held, within `grace_seconds` of the stop. Nothing by default."""

    # --- for subclasses to call

    def phase(self, name: str) -> None:
        """Set the phase shown from now on."""
        self._activity.set_phase(name)

    def trouble(self, code: str = "", detail: str = "") -> None:
        """Say what keeps this service from working, as a fixed word and the error message; nothing does any more when
        `code` is empty. /readyz answers 503 while something does, and `sieve status` names it."""
        self._trouble = (code, detail[:400])
        self._measured.up.set(int(self._ready and not code))

    def waiting(self, reason: str) -> AbstractContextManager[None]:
        """Context around a blocking call: shows `reason` as waited for, and counts its seconds."""
        return self._activity.waiting(reason)

    def wait(self, reason: str, seconds: float) -> bool:
        """Wait `seconds` or until the stop, whichever comes first; True if stopping."""
        with self.waiting(reason):
            return self.stopping.wait(seconds)

    def retrying(self, call: Callable[[], T]) -> T:
        """The result of `call()`, repeated with backoff while Redis is unreachable (for at most broker.connect_seconds)
        or full (10 minutes).

        The call must be safe to repeat. Raises the last error at the deadline, on a stop, or when waiting cannot help.
        """
        begin, pause = time.monotonic(), 0.05
        failed: float | None = None
        while True:
            try:
                answer = call()
            except (*UNREACHABLE, BrokerFull) as error:
                full = isinstance(error, BrokerFull)
                limit = FULL_SECONDS if full else self._config.broker.connect_seconds
                if failed is None:
                    failed = time.monotonic()
                    self.log.warning("%s; trying again for %g s", error, limit)
                if self.stopping.is_set() or is_lasting(error) or time.monotonic() - failed >= limit:
                    raise
                self.wait("room in the broker" if full else "broker", pause)
                pause = min(pause * 2, 2.0)
            else:
                if failed is not None:
                    self.log.info("the broker answered after %.1f s", time.monotonic() - begin)
                return answer

    def finish(self, reason: str) -> None:
        """End the service because nothing is left to do: drain and exit 0."""
        self.log.info("finished: %s", reason)
        self.finished.set()

    def request_stop(self, reason: str = "asked to stop") -> None:
        """Drain and exit; callable from any thread."""
        if not self.stopping.is_set():
            self.log.info("stopping: %s", reason)
        self.stopping.set()

    # --- what others see

    def heartbeat(self) -> Heartbeat:
        """The heartbeat to send now."""
        shown, (trouble, detail) = self._activity.shown(), self._trouble
        return Heartbeat(
            id=self.id,
            role=self.role,
            phase=shown.phase,
            phase_seconds=shown.phase_seconds,
            waiting_on=shown.waiting_on[:200],
            waiting_seconds=shown.waiting_seconds,
            trouble=trouble,
            detail=detail,
            pid=os.getpid(),
            host=self.host,
            metrics_url=self.metrics_url,
            index=self.index,
            queues=self.queues,
            values=dict(self.values),
        )

    def _line(self) -> str:
        return f"{self.id} {self.heartbeat().doing}"

    def _healthy(self) -> tuple[bool, str]:
        still, limit = self._activity.still_seconds, self.stall_seconds
        return still < limit, f"{self._line()}; loop moved {still:.1f} s ago, limit {limit:g} s"

    def _is_ready(self) -> tuple[bool, str]:
        silent, limit = self._activity.silent_seconds, self._config.broker.lease_seconds
        ready = self._ready and silent < limit and not self._trouble[0]
        return ready, f"{self._line()}; heartbeat {silent:.1f} s ago, limit {limit:g} s"

    # --- the run

    def run(self) -> int:
        """Serve until finished or stopped. Returns the exit code; prints one line on stderr for every failure."""
        try:
            handlers = open_log(self.log, self.id, self._config.run.path / "logs")
        except SieveError as error:
            print(f"sieve {self.role}: {error}", file=sys.stderr)
            return error.exit_code
        try:
            with stop_signals(self.request_stop, self._force_end, lambda: self.grace_seconds):
                code = self._serve()
            self.log.info("exit %d", code)
            return code
        finally:
            close_log(self.log, handlers)

    def _serve(self) -> int:
        http: MetricsServer | None = None
        beating: threading.Thread | None = None
        code = EX_INTERNAL
        try:
            settings = self._config.metrics
            http = MetricsServer(
                self.registry, settings.host, settings.port, healthy=self._healthy, ready=self._is_ready
            )
            self.metrics_url = http.url
            self.log.info("sieve %s %s, %s", self.role, build_version(), http.url)
            self.phase("connecting")
            self.broker = self._connect()
            beating = self._start_heartbeat()
            self.phase("setting up")
            self.setup()
            self._ready = True
            self._measured.up.set(1)
            self.log.info("ready")
            self._loop()
            if self._failure is None:
                self.phase("draining")
                self.drain()
                self.phase("stopped")
            code = EX_OK
        except _Stopped:
            code = EX_OK
        except Exception as error:
            code, line = explain(error)
            self.log.error("%s", line, exc_info=not isinstance(error, SieveError))
        finally:
            self._ready = False
            self._measured.up.set(0)
            self._silent.set()
            if beating is not None:
                beating.join(self._config.broker.lease_seconds)
            if hasattr(self, "broker"):
                self.broker.close()
            if http is not None:
                http.close()
        # A failure that the heartbeat found is the cause of whatever failed in the loop afterwards.
        return self._failure[0] if self._failure is not None else code

    def _loop(self) -> None:
        while not (self.stopping.is_set() or self.finished.is_set()):
            try:
                self.retrying(self.step)
            except (*UNREACHABLE, BrokerFull):
                if not self.stopping.is_set():
                    raise
            self._measured.steps.inc()
            self._activity.moved()

    def _connect(self) -> ClientT:
        """A connection within broker.connect_seconds. Raises BrokerUnavailable with the last reason and a remedy."""
        settings, run = self._config.broker, self._config.run
        deadline = time.monotonic() + settings.connect_seconds
        pause = 0.05
        while True:
            url = None
            try:
                url = resolve_url(settings, run, self._url)
                RunConnection.connect(self._impatient, run, url=url).close()  # a short try, for a stop in between
                return self.client.connect(settings, run, url=url)
            except BrokerUnavailable as error:
                left = deadline - time.monotonic()
                if error.lasting:
                    raise
                if left > 0 and self.wait("broker", min(pause, left)):
                    raise _Stopped from None
                if left <= 0:
                    remedy = "" if url is None else f" ({url}); start sieve broker CONFIG, or correct broker.url"
                    raise BrokerUnavailable(
                        f"no broker within broker.connect_seconds = {settings.connect_seconds:g} s: {error}{remedy}",
                        cause=error.cause,
                    ) from None
                pause = min(pause * 2, 1.0)

    @property
    def _impatient(self) -> BrokerSettings:
        settings = self._config.broker
        return settings.model_copy(update={"connect_seconds": min(PROBE_SECONDS, settings.connect_seconds)})

    def _start_heartbeat(self) -> threading.Thread:
        """Send the first heartbeat and start the thread that sends the others.

        It has its own connection, so that a long call of the loop never delays a heartbeat."""
        url = resolve_url(self._config.broker, self._config.run, self._url)
        broker = RunConnection.connect(self._impatient, self._config.run, url=url)
        broker.heartbeat(self.heartbeat())
        self._activity.set_reached(True)
        thread = threading.Thread(target=self._beat, args=(broker,), name="heartbeat", daemon=True)
        thread.start()
        return thread

    def _beat(self, broker: RunConnection) -> None:
        settings = self._config.broker
        period = pause = settings.lease_seconds / BEATS_PER_LEASE
        try:
            while not self._silent.wait(pause):
                pause = period
                try:
                    broker.heartbeat(self.heartbeat())
                    self._activity.set_reached(True)
                except (*UNREACHABLE, BrokerFull) as error:
                    full = isinstance(error, BrokerFull)
                    limit = FULL_SECONDS if full else settings.connect_seconds
                    away = self._activity.silent_seconds
                    if not full:
                        self._activity.set_reached(False)
                    if is_lasting(error) or away > limit + period:
                        self._give_up(
                            f"no heartbeat was acknowledged for {away:.1f} s, limit {limit:g} s: {error}; start the "
                            f"broker again, then this service"
                        )
                        return
                    pause = min(period, 0.25)
            if self._activity.phase == "stopped":  # then nothing is held whose lease must run out first
                broker.heartbeat(self.heartbeat())
        except Fenced as error:
            self._give_up(str(error))
        except (*UNREACHABLE, BrokerFull) as error:
            self.log.warning("the last heartbeat was not acknowledged: %s", error)
        except Exception as error:
            self.log.error("heartbeat: %s", explain(error)[1], exc_info=True)
            self._failure = (EX_INTERNAL, str(error))
            self.stopping.set()
        finally:
            broker.close()

    def _give_up(self, line: str) -> None:
        self.log.error("%s", line)
        self._failure = (EX_UNAVAILABLE, line)
        self.stopping.set()

    def _force_end(self, why: str) -> None:
        self.log.error("%s while %s; what it holds returns to other services by its lease", why, self._line())
        os._exit(EX_TEMPORARY)


def is_lasting(error: Exception) -> bool:
    """Whether waiting cannot help: wrong password, wrong version."""
    return getattr(error, "lasting", False) or isinstance(error, redis.exceptions.AuthenticationError)


def explain(error: Exception) -> tuple[int, str]:
    """Exit code and one-line message for an exception that ended a service."""
    if isinstance(error, SieveError):
        return error.exit_code, str(error)
    if isinstance(error, UNREACHABLE):
        return EX_UNAVAILABLE, f"broker: {error}; start it again (sieve broker CONFIG) or set broker.url"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = error.filename or "the run directory"
        return EX_TEMPORARY, f"{where}: {error.strerror}; free space there and start again, nothing committed is lost"
    return (
        EX_INTERNAL,
        f"unexpected {type(error).__name__}: {' '.join(str(error).split())}; the log file has the traceback",
    )
