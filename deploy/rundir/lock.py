"""The run directory as `sieve run` takes it: one live launcher per name, nothing overwritten, resumed only when asked.

Holds the lock, the decision what a directory that exists means, and moving a finished run aside. The lock is the
kernel's (flock): it ends with the process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from broker.errors import EX_USAGE, SieveError
from broker.runtime.redis_server import answers, read_endpoint
from broker.settings import RunSettings
from deploy.config.tree import Config, dump

TRACES = ("config.yaml", "metrics.jsonl", "eval.jsonl", "checkpoints", "weights")
"""What a run leaves behind; a directory without any of these is as good as new (a broker may have been started in
it)."""


class RunDirectoryError(SieveError):
    """The run directory cannot be taken."""

    exit_code = EX_USAGE


class RunDirectory:
    """Taken while open; a context manager that lets go at the end."""

    def __init__(self, config: Config, *, resume: bool, fresh: bool) -> None:
        """Raises RunDirectoryError: a live run of this name, one to resume or replace, or none to resume."""
        self.run: RunSettings = config.run
        self.path: Path = config.run.path
        self.moved: Path | None = None
        """Where `fresh` moved the run that was here."""
        self._lock = -1
        there = [name for name in TRACES if (self.path / name).exists()]
        if resume and not there:
            raise RunDirectoryError(f"{self.path}: holds no run to resume; leave out --resume to start one")
        self._take()
        try:
            if there and fresh:
                self._move_aside()
            elif there and not resume:
                raise RunDirectoryError(
                    f"{self.path}: a run is there already ({', '.join(there)}); go on with it: --resume, move it "
                    f"aside and start "
                    f"anew: --fresh, or take another name: --set run.name=…"
                )
            (self.path / "logs").mkdir(parents=True, exist_ok=True)
            (self.path / "config.yaml").write_text(dump(config), encoding="utf-8")
        except OSError as error:
            self.close()
            raise _unwritable(self.path, error) from None
        except BaseException:
            self.close()
            raise

    def _take(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "run.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 64, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._lock)
            self._lock = -1
            raise RunDirectoryError(
                f"{self.path}: a `sieve run` of this name is alive (pid {holder}); watch it with `sieve status`, stop "
                f"it, or "
                f"take another name: --set run.name=…"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _move_aside(self) -> None:
        endpoint = read_endpoint(self.run)
        if endpoint is not None and answers(endpoint.url):
            raise RunDirectoryError(
                f"{self.path}: its Redis (pid {endpoint.pid}) is alive, so services may be at work there; stop them "
                f"and "
                f"`sieve broker` first"
            )
        stamp = time.strftime("%Y%m%d-%H%M%S")
        target = self.path.with_name(f"{self.path.name}.{stamp}")
        if target.exists():
            raise RunDirectoryError(f"{target}: exists, so {self.path} cannot be moved there; try again in a second")
        self.path.rename(target)
        self.moved = target
        os.close(self._lock)
        self._take()

    def close(self) -> None:
        """Let go of the name."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _unwritable(path: Path, error: OSError) -> RunDirectoryError:
    return RunDirectoryError(f"{path}: cannot be written: {error.strerror}; set run.directory to a folder that can")
