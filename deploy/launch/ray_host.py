"""One service inside one Ray actor: the process that Ray restarts.

The service runs in one of the actor's two threads, the other answers `stop`. What concerns several services, such as
placement and restarts, is decided in the launcher's process (ray_units.py, restarts.py), which also wraps this class
for Ray.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from broker.printable import one_line
from broker.runtime.service import Service, explain
from deploy.config import search_path
from deploy.config.tree import Config
from deploy.launch.roles import Startable, make


class Ended(NamedTuple):
    """The end of a service: its exit code, and its last error line (empty after exit code 0)."""

    code: int
    line: str


class LastError(logging.Handler):
    """A log handler that keeps the newest error line, for the launcher to repeat."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.line = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.line = one_line(record.getMessage())


class Host:
    """One service in this process.

    `tree` is the configuration with its secrets (`config.plain`); it never leaves Ray's own channels. `search`: folders
    that hold the modules it names, as `search_path.added` gives them.
    """

    def __init__(
        self,
        role: Startable,
        tree: Mapping[str, Any],
        *,
        index: int,
        url: str,
        names: Sequence[str],
        threads: int,
        search: Sequence[str],
    ) -> None:
        # Before torch is imported, and over what Ray derives from the actor's CPU share.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        search_path.add(search)
        self._role, self._tree, self._index, self._url, self._names = role, tree, index, url, names
        self._lock = threading.Lock()
        self._service: Service[Any] | None = None
        self._stopped = False

    def process(self) -> int:
        """The id of this process, which changes with each restart."""
        return os.getpid()

    def address(self) -> tuple[str, int]:
        """This machine's address in the cluster and a port that is free now, for the ranks to meet at."""
        import socket

        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            # Not the host name, which Debian resolves to a loopback address: other machines could not reach that.
            return str(ray.util.get_node_ip_address()), int(probe.getsockname()[1])

    def run(self, environment: Mapping[str, str]) -> Ended:
        """Run the service until it is finished, stopped or fails. `environment`, the rank's coordinates, is added to
        that of the process."""
        os.environ.update(environment)
        last = LastError()
        try:
            config = Config.model_validate(self._tree)
            service = make(self._role, config, index=self._index, url=self._url, names=self._names)
        except Exception as error:
            # Whatever a constructor raises ends this service only; the launcher decides about a restart.
            code, line = explain(error)
            return Ended(code, line)
        service.log.addHandler(last)
        with self._lock:
            self._service = service
            if self._stopped:
                service.request_stop("stopped before it started")
        code = service.run()
        return Ended(code, last.line if code else "")

    def stop(self, reason: str) -> None:
        """Ask the service to drain; `run` returns once it has."""
        with self._lock:
            self._stopped = True
            if self._service is not None:
                self._service.request_stop(reason)
