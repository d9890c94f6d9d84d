"""The run directory as `sieve run` uses it: one live launcher per name, nothing overwritten, resumed only when asked.

The lock is the kernel's (flock), so it ends with the process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from broker.runtime.endpoint import answers, read_endpoint
from broker.settings import RunSettings
from deploy.config.load import load
from deploy.config.tree import Config, dump, plain
from deploy.rundir.schema import RunDirectoryError, check_schema, mark_schema, traces, unwritable
from learner.resumption import MAY_CHANGE, changes, flat, refused


class RunDirectory:
    """A run directory that is locked for one launcher; a context manager that releases the lock at its end."""

    def __init__(self, config: Config, *, resume: bool, fresh: bool) -> None:
        """Lock the directory and, for a new run, write `run.json` and `config.yaml` into it.

        `resume` continues the run that is there, `fresh` moves it aside, under its name and the time. The configuration
        of a run that is continued is replaced by `settle` only.

        Raises:
            RunDirectoryError: a run of this name is alive; one is there and neither `resume` nor `fresh` was given;
                none is there to resume; it cannot go on with these settings; the directory cannot be written.
            SchemaError: the run that is there is of another schema and not moved aside.
        """
        self.run: RunSettings = config.run
        self.path: Path = config.run.path
        self.moved: Path | None = None
        """Where `fresh` moved the run that was here."""
        self._lock = -1
        self._new_config = ""
        there = traces(self.path)
        if resume and not there:
            raise RunDirectoryError(f"{self.path}: holds no run to resume; leave out --resume to start one")
        self._acquire()
        try:
            if fresh and there:
                self._move_aside()
            check_schema(self.path)
            if there and not (resume or fresh):
                raise RunDirectoryError(
                    f"{self.path}: a run is there already ({', '.join(there)}); continue it with --resume, move it "
                    f"aside and start anew with --fresh, or use another name with --set run.name=…"
                )
            mark_schema(self.path)
            (self.path / "logs").mkdir(parents=True, exist_ok=True)
            stored = self.path / "config.yaml"
            if resume and stored.exists():
                self._new_config = self._changed(config, stored)
            else:
                stored.write_text(dump(config), encoding="utf-8")
        except OSError as error:
            self.close()
            raise unwritable(self.path, error) from None
        except BaseException:
            self.close()
            raise

    def _changed(self, config: Config, stored: Path) -> str:
        """What config.yaml is to hold from now on; empty when it says so already. Raises RunDirectoryError."""
        before = load(stored, (), {}, check="none")
        found = changes(flat(plain(before)), flat(plain(config)))
        if wrong := refused(found):
            raise RunDirectoryError(
                f"{self.path}: cannot go on with other settings ({'; '.join(map(str, wrong[:5]))}); undo the change, "
                f"or start another run with --set run.name=…; --resume may change {', '.join(MAY_CHANGE)}"
            )
        return dump(config) if found else ""

    def settle(self) -> None:
        """Replace config.yaml by the configuration that the run goes on with, once its learner has accepted it."""
        if self._new_config:
            partial = self.path / f".config.yaml.{os.getpid()}"
            partial.write_text(self._new_config, encoding="utf-8")
            partial.replace(self.path / "config.yaml")
            self._new_config = ""

    def _acquire(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "run.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise unwritable(self.path, error) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 64, 0).decode("ascii", "replace").strip() or "unknown"
            self.close()
            raise RunDirectoryError(
                f"{self.path}: a `sieve run` of this name is alive (pid {holder}); watch it with `sieve status`, stop "
                f"it, or use another name with --set run.name=…"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _move_aside(self) -> None:
        endpoint = read_endpoint(self.run)
        if endpoint is not None and answers(endpoint.url):
            raise RunDirectoryError(
                f"{self.path}: its Redis (pid {endpoint.pid}) is alive, so services may be working there; stop them "
                f"and `sieve broker` first"
            )
        target = self.path.with_name(f"{self.path.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        if target.exists():
            raise RunDirectoryError(f"{target}: exists, so {self.path} cannot be moved there; try again in a second")
        self.path.rename(target)
        self.moved = target
        self.close()
        self._acquire()

    def close(self) -> None:
        """Release the lock."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
