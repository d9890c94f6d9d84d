"""The private Redis server of a run: starting it, keeping it up, and stopping it.

Its files are in <run>/redis (0700): configuration (0600, with the password, which is never on a command line or in a
log), append-only file, log and socket. It listens on that socket, or on a loopback port where the path is too long for
one. Address and password survive a restart (broker/runtime/endpoint.py), so that connected services reconnect and the
run goes on.

A server never outlives the process that started it, even after kill -9: a small keeper process between the two holds
the reading end of a pipe and stops Redis when the pipe closes. (PR_SET_PDEATHSIG alone follows the *thread* that
forked, and running Python between fork and exec of a threaded process can deadlock; the keeper has one thread when it
forks.)
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import redis

from broker.errors import BrokerUnavailable, UsageError
from broker.runtime.endpoint import answers, connect_once, endpoint_path, read_endpoint, write_private
from broker.runtime.redis_program import Binary, find_binary
from broker.settings import BrokerSettings, RunSettings

SOCKET_BYTES = 100
"""A unix socket's path may have 107 bytes; a longer one gets a loopback port instead."""
LOAD_SECONDS = 600.0
"""How long a server may read its append-only file before it counts as stuck (about 100 MB a second on a slow disk)."""
LOCK_SECONDS = 10.0
"""How long a former server of the same run may take to close before the new one gives up."""
CLOSING_SECONDS = 2.0
"""A server that still answers after this time is in use, not closing."""
STOP_SECONDS = 30.0
RESTARTS = 5
"""Restarts within RESTART_SECONDS after which the server counts as broken."""
RESTART_SECONDS = 60.0
OVERHEAD, HEADROOM = 1.5, 256 << 20
"""Bytes in Redis per payload byte (8 KB cost 10.3 KB, plus fragmentation); room for tickets, streams and scores."""

log = logging.getLogger("sieve.server")

_KEEPER = """
import ctypes, os, signal, subprocess, sys, threading
binary, config, lock = sys.argv[1:]
libc, keeper = ctypes.CDLL(None), os.getpid()
def die_with_keeper():
    libc.prctl(1, signal.SIGTERM)
    if os.getppid() != keeper:
        os._exit(1)
server = subprocess.Popen([binary, config], stdin=subprocess.DEVNULL, pass_fds=[int(lock)], preexec_fn=die_with_keeper)
def watch():
    while os.read(0, 1):
        pass
    server.terminate()
threading.Thread(target=watch, daemon=True).start()
code = server.wait()
os._exit(code if code >= 0 else 128 - code)
"""


class Server:
    """A running private server and its process; made by `start`."""

    def __init__(self, settings: BrokerSettings, run: RunSettings, binary: Binary, lock: int) -> None:
        self._settings, self._run, self._lock = settings, run, lock
        self.binary = binary
        self.directory = run.path.resolve() / "redis"
        self.pid = 0
        """Process id of Redis itself, not of its keeper."""
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts: list[float] = []
        try:
            known = read_endpoint(run)
        except BrokerUnavailable as error:
            log.warning("%s; writing a new one", error)
            known = None
        here = self.directory / "redis.sock"
        ours = known is not None and known.host == socket.gethostname()
        password = _password(known.url) if known is not None and ours else secrets.token_hex(32)
        if len(os.fsencode(here)) <= SOCKET_BYTES:
            self._port = 0
            self.url = f"unix://:{password}@{quote(str(here))}"
        else:
            self._port = _port(known.url) if known is not None and ours else 0
            self._port = self._port or _free_port()
            self.url = f"redis://:{password}@127.0.0.1:{self._port}/0"
        self._password = password

    @classmethod
    def start(cls, settings: BrokerSettings, run: RunSettings, binary: Binary | None = None) -> Server:
        """The run's server, started and answering, with everything that an earlier one had acknowledged.

        Raises BrokerUnavailable: no program, another server on the same run, or not ready in time (with its log's end).
        """
        binary = binary or find_binary()
        directory = run.path / "redis"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
            lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise BrokerUnavailable(
                f"cannot write {directory}: {error.strerror}; set run.directory to a writable folder",
                lasting=True,
            ) from None
        try:
            _hold(lock, run)
            _refuse_newer_data(directory, binary)
            server = cls(settings, run, binary, lock)
            server._spawn()
        except BaseException:
            os.close(lock)
            raise
        return server

    def _spawn(self) -> None:
        write_private(self.directory / "redis.conf", self._config())
        environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        with open(self.directory / "redis.log", "ab") as output:
            # -I and -S: the keeper needs nothing from site-packages, and starts in 20 ms.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _KEEPER, self.binary.path, "redis.conf", str(self._lock)],
                cwd=self.directory,
                env={**environment, "LC_ALL": "C"},  # without the secrets in this process's environment
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[self._lock],
                start_new_session=True,  # Ctrl-C must stop the services only: they need Redis to drain
            )
        try:
            self._await_ready()
            endpoint = {"url": self.url, "host": socket.gethostname(), "pid": self.pid, "server": str(self.binary)}
            write_private(endpoint_path(self._run), json.dumps(endpoint) + "\n")
        except BaseException:
            self._end()
            raise

    def _config(self) -> str:
        listen = (
            ["bind 127.0.0.1", f"port {self._port}"]
            if self._port
            else ["port 0", "unixsocket redis.sock", "unixsocketperm 700"]
        )
        return "\n".join(
            [
                *listen,
                "protected-mode yes",
                f"requirepass {self._password}",
                "databases 1",
                "logfile redis.log",
                'save ""',
                "appendonly yes",
                "appendfsync everysec",
                f"maxmemory {int(self._settings.max_queued_bytes * OVERHEAD) + HEADROOM}",
                "maxmemory-policy noeviction",
                "",
            ]
        )

    def _await_ready(self) -> None:
        assert self._process is not None
        begin, limit = time.monotonic(), self._settings.connect_seconds
        state = "no answer"
        with connect_once(self.url) as client:
            while True:
                try:
                    self.pid = int(client.info("server")["process_id"])
                    return
                except redis.exceptions.BusyLoadingError:
                    state, limit = "still reading its append-only file", LOAD_SECONDS
                except redis.exceptions.RedisError as error:
                    state = str(error) or type(error).__name__
                if (code := self._process.poll()) is not None:
                    raise BrokerUnavailable(
                        f"{self.binary} ended at start with code {code}: {self.log_tail()}", lasting=True
                    )
                if time.monotonic() - begin > limit:
                    raise BrokerUnavailable(
                        f"{self.binary} not ready after {limit:g} s ({state}); its log ends: {self.log_tail()}; raise "
                        f"broker.connect_seconds or look into {self.directory / 'redis.log'}"
                    )
                time.sleep(0.01)

    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    def ensure(self) -> bool:
        """Start it again if it died; True if it had. For its owner to call about every second.

        Raises BrokerUnavailable after 5 restarts within a minute.
        """
        if self.alive():
            return False
        now = time.monotonic()
        self._restarts = [at for at in self._restarts if now - at < RESTART_SECONDS]
        if len(self._restarts) >= RESTARTS:
            raise BrokerUnavailable(
                f"Redis died {RESTARTS + 1} times within {RESTART_SECONDS:g} s; its log ends: {self.log_tail()}; "
                f"look into {self.directory / 'redis.log'}",
                lasting=True,
            )
        self._restarts.append(now)
        log.warning("Redis (pid %d) died; starting it again on %s", self.pid, self.directory)
        self._end()
        self._spawn()
        return True

    def log_tail(self, lines: int = 3) -> str:
        """The last `lines` lines of its log, joined into one, without the password."""
        try:
            with open(self.directory / "redis.log", "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
                text = file.read().decode("utf-8", "replace")
        except OSError as error:
            return f"(no log: {error.strerror})"
        kept = [line.strip() for line in text.splitlines() if line.strip()][-lines:]
        return " | ".join(kept).replace(self._password, "***")

    def stop(self) -> None:
        """Stop it gracefully: what was acknowledged is on disk afterwards."""
        self._end()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _end(self) -> None:
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            log.error("Redis (pid %d) did not stop within %g s; killing it", self.pid, STOP_SECONDS)
            if self.pid:
                os.kill(self.pid, signal.SIGKILL)
            process.wait(STOP_SECONDS)
        self._process = None

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve(settings: BrokerSettings, run: RunSettings, announce: Callable[[Server], None]) -> int:
    """Run the run's server until SIGTERM or SIGINT (`sieve broker`), in the main thread. Returns the exit code.

    `announce` is called once, when it answers. A server that dies is started again on the same data.
    """
    if settings.url is not None:
        raise UsageError("broker.url is set, so this run uses that server; remove broker.url to have one started")
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: asked.append(signum))
    with Server.start(settings, run) as server:
        announce(server)
        while not asked:
            server.ensure()
            time.sleep(0.2)
    return 0


def _hold(lock: int, run: RunSettings) -> None:
    """Take the directory's lock. A server's processes hold it too: two servers would destroy the append-only file."""
    begin = time.monotonic()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        known = read_endpoint(run)
        waited = time.monotonic() - begin
        # A server whose owner has just died still answers for a moment.
        if waited > LOCK_SECONDS or (waited > CLOSING_SECONDS and known is not None and answers(known.url)):
            who = f"pid {known.pid} on {known.host}" if known is not None else "another process"
            raise BrokerUnavailable(
                f"{run.path / 'redis'} is in use by a server ({who}), which services find by themselves: stop it "
                f"first, or give this run another run.name",
                lasting=True,
            )
        time.sleep(0.1)


def _refuse_newer_data(directory: Path, binary: Binary) -> None:
    """Raise BrokerUnavailable for an append-only file of Redis 7, which Redis 6.2 would ignore and start empty."""
    if binary.version[0] < 7 and (directory / "appendonlydir").is_dir():
        raise BrokerUnavailable(
            f"{directory} was written by Redis 7 or newer and {binary} cannot read it; put that redis-server (or "
            f"valkey-server) on PATH again, or give this run another run.name",
            lasting=True,
        )


def _password(url: str) -> str:
    return unquote(urlsplit(url).password or "") or secrets.token_hex(32)


def _port(url: str) -> int:
    return urlsplit(url).port or 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
