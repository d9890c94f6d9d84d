"""Folders that belong to processes: a lock on each, by which the next start finds those whose owners have all ended.

The lock (flock) is shared by whoever inherits its descriptor, and ends with the last of them, however that ends. Unlike
the number of a process it means the same in every pid namespace, and is never given to another.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "sieve-sandbox-"
"""How the names of such folders begin."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SECONDS = 2.0


def claim(folder: Path) -> int:
    """The descriptor of a folder, made if it is missing, that is not abandoned while the descriptor is open.

    Raises OSError, also where the folder is being removed for longer than two seconds.
    """
    until = time.monotonic() + _SECONDS
    while True:
        folder.mkdir(mode=0o755, exist_ok=True)
        with contextlib.suppress(FileNotFoundError, BlockingIOError):  # `abandoned` has found it before it had a lock
            descriptor = os.open(folder, _FOLDER)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if os.path.samestat(os.stat(folder), os.fstat(descriptor)):
                    return descriptor
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)
        if time.monotonic() >= until:
            raise TimeoutError(f"{folder} is being removed by another process")
        time.sleep(0.01)


def abandoned(parent: Path) -> Iterator[Path]:
    """This user's folders in `parent` that nobody claims any more; each is locked while the caller removes it."""
    for path in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:  # it is claimed, or gone, or no folder
            descriptor = os.open(path, _FOLDER)
            stack.callback(os.close, descriptor)
            if os.fstat(descriptor).st_uid == os.getuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield path
