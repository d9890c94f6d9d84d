"""Observability of a service: /metrics, /healthz and /readyz, the metrics that all services share, and the log.

Each service owns its registry; nothing is registered globally. Labels come from small fixed sets written in the code
(phase, reason), never from data. Nothing here talks to Redis.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge, Info, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from broker.errors import LogUnwritable, PortTaken, redact
from broker.printable import indented, one_line

REQUEST_SECONDS = 10.0
"""A client that neither sends nor reads for this long is dropped, so that scrapes cannot pile up threads."""

disable_created_metrics()  # type: ignore[no-untyped-call]
# They would add a series per counter; sieve_start_time_seconds has the start time once.

Probe = Callable[[], tuple[bool, str]]
"""Returns whether the service is well, and one line with the reason."""


def build_version() -> str:
    """The installed distribution's version; `unknown` when the packages run from a plain checkout."""
    try:
        return metadata.version("sieve-rl")
    except metadata.PackageNotFoundError:
        return "unknown"


class BaseMetrics:
    """The metrics that every service has, on the service's own registry."""

    def __init__(self, registry: CollectorRegistry, role: str) -> None:
        self.up = Gauge("sieve_up", "1 while the service is connected, set up and able to work.", registry=registry)
        self.up.set(0)
        self.phase = Gauge(
            "sieve_phase", "1 for the phase the service is in, 0 for the others.", ["phase"], registry=registry
        )
        self.waiting = Counter(
            "sieve_waiting_seconds", "Time spent in named waits, by what was waited for.", ["reason"], registry=registry
        )
        self.steps = Counter("sieve_loop_steps", "Iterations of the service's loop.", registry=registry)
        self.outages = Counter("sieve_broker_outages", "Times the broker became unreachable.", registry=registry)
        self.heartbeat_age = Gauge(
            "sieve_heartbeat_age_seconds", "Time since the broker last acknowledged a heartbeat.", registry=registry
        )
        self.loop_age = Gauge("sieve_loop_age_seconds", "Time since the loop last made progress.", registry=registry)
        start = Gauge("sieve_start_time_seconds", "Unix time at which the service started.", registry=registry)
        start.set(time.time())
        info = Info("sieve_build", "Version and role.", registry=registry)
        info.info({"version": build_version(), "role": role})
        ProcessCollector(namespace="sieve", registry=registry)


class MetricsServer:
    """The HTTP server of a service; answers from daemon threads until `close`.

    /metrics serves the registry in the format that the client accepts; /healthz and /readyz answer 200 or 503 with one
    line. Raises PortTaken when the address cannot be bound.
    """

    def __init__(self, registry: CollectorRegistry, host: str, port: int, *, healthy: Probe, ready: Probe) -> None:
        probes = {"/healthz": healthy, "/readyz": ready}

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_SECONDS
            server_version = "sieve"
            sys_version = ""

            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                if path == "/metrics":
                    encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                    self._answer(200, encode(registry), content_type)
                elif path in probes:
                    well, why = probes[path]()
                    self._answer(200 if well else 503, f"{why}\n".encode(), "text/plain; charset=utf-8")
                else:
                    self._answer(404, b"/metrics, /healthz or /readyz\n", "text/plain; charset=utf-8")

            do_HEAD = do_GET

            def _answer(self, status: int, body: bytes, content_type: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing: scrapes come every few seconds."""

        family = socket.AF_INET6 if ":" in host else socket.AF_INET

        class Server(ThreadingHTTPServer):
            address_family = family
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """Ignore clients that disconnect in the middle of an answer."""

        try:
            self._server = Server((host, port), Handler)
        except OSError as error:
            raise PortTaken(
                f"metrics: cannot listen on {host}:{port} ({error.strerror or error}); set metrics.port to a free port "
                f"or to 0 (takes one), and metrics.host to an address of this machine"
            ) from None
        self.port: int = self._server.server_address[1]
        shown = socket.gethostname() if host in ("0.0.0.0", "::") else host
        self.url = f"http://{f'[{shown}]' if ':' in shown else shown}:{self.port}/metrics"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop the server and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Line(logging.Formatter):
    """Formatter of one line per record, `2026-01-31T12:00:00.123Z INFO actor-0-… message`, passwords in urls masked and
    everything printable.

    `traceback` adds tracebacks below the line, indented: the log file has them, the terminal does not.
    """

    def __init__(self, service: str, *, traceback: bool) -> None:
        super().__init__()
        self._service = service
        self._traceback = traceback

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        message = one_line(redact(record.getMessage()))
        text = f"{moment}.{int(record.msecs):03d}Z {record.levelname} {self._service} {message}"
        if self._traceback and record.exc_info:
            text += "\n" + indented(redact(self.formatException(record.exc_info)))
        return text


def open_log(log: logging.Logger, service: str, directory: Path) -> list[logging.Handler]:
    """Handlers that send `log` to stderr and to <directory>/<service>.log. Raises LogUnwritable."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(directory / f"{service}.log", encoding="utf-8")
    except OSError as error:
        raise LogUnwritable(
            f"cannot write {directory}: {error.strerror or error}; set run.directory to a folder that can be written"
        ) from None
    terminal = logging.StreamHandler(sys.stderr)
    file.setFormatter(Line(service, traceback=True))
    terminal.setFormatter(Line(service, traceback=False))
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in (file, terminal):
        log.addHandler(handler)
    return [file, terminal]


def close_log(log: logging.Logger, handlers: list[logging.Handler]) -> None:
    """Remove and close the handlers of `open_log`."""
    for handler in handlers:
        log.removeHandler(handler)
        handler.close()
