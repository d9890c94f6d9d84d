"""One service inside one Ray actor: the process that Ray restarts.

Runs the service in one of the actor's two threads and answers `stop` in the other. Restart policy, placement and
everything that needs the whole picture are the launcher's (launch.py); nothing here knows about other services. The
launcher wraps this class for Ray.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from broker.runtime.service import Service, explain
from deploy.config.tree import Config
from deploy.launch.roles import Startable, make


class Ended(NamedTuple):
    """How a service ended by itself: its exit code, and the line it gave as the reason (empty after a good end)."""

    code: int
    line: str


class LastError(logging.Handler):
    """Keeps the newest error line, so that the launcher can repeat the service's own words."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.line = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.line = record.getMessage()


class Host:
    """Holds one service. `tree` is the configuration with its secrets (`config.plain`); it never leaves Ray's own
    channels."""

    def __init__(
        self, role: Startable, tree: Mapping[str, Any], *, index: int, url: str, names: Sequence[str], threads: int
    ) -> None:
        # Before torch is imported, and over what Ray derives from the actor's CPU share.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self._role, self._tree, self._index, self._url, self._names = role, tree, index, url, names
        self._lock = threading.Lock()
        self._service: Service | None = None
        self._stopped = False

    def process(self) -> int:
        """The process id: a new one after each restart."""
        return os.getpid()

    def address(self) -> tuple[str, int]:
        """The address by which the cluster reaches this machine and a port that is free now, for the ranks'
        rendezvous."""
        import socket

        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            # Not the host name: Debian resolves that to a loopback address, right for one machine and wrong for
            # several.
            return str(ray.util.get_node_ip_address()), int(probe.getsockname()[1])

    def run(self, environment: Mapping[str, str]) -> Ended:
        """Serve until finished, stopped or failed. `environment` is added to the process's own (the rank's
        coordinates)."""
        os.environ.update(environment)
        heard = LastError()
        try:
            config = Config.model_validate(self._tree)
            service = make(self._role, config, index=self._index, url=self._url, names=self._names)
        except Exception as error:
            # A constructor refuses with an error of its own; anything else is a fault of ours. Both end this service
            # only.
            code, line = explain(error)
            return Ended(code, line)
        service.log.addHandler(heard)
        with self._lock:
            self._service = service
            if self._stopped:
                service.request_stop("stopped before it started")
        code = service.run()
        return Ended(code, heard.line if code else "")

    def stop(self, reason: str) -> None:
        """Ask the service to drain; `run` returns when it has."""
        with self._lock:
            self._stopped = True
            if self._service is not None:
                self._service.request_stop(reason)
