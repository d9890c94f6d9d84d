"""Where modules that a configuration names (`factory: module:attribute`) are found besides the installed ones.

The folder of the configuration and the working directory are searched last, after everything that is installed: a
folder `actor` or a file `redis.py` in them never hides the package of that name.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

_added: list[str] = []


def add(folders: Iterable[Path | str]) -> None:
    """Search `folders` for modules, in this order, after what `sys.path` has already."""
    for folder in folders:
        path = str(Path(folder).absolute())
        if path not in sys.path:
            sys.path.append(path)
        if path not in _added:
            _added.append(path)


def added() -> tuple[str, ...]:
    """The folders added in this process, for the processes that it starts."""
    return tuple(_added)
