"""Files of the run directory that one learner writes and the next may have to write anew: records and exports.

Each is written under a hidden name that has the learner's epoch in it, `.metrics.jsonl.e0003`, by the one process that
has this epoch. The plain name, `metrics.jsonl`, is a symbolic link to the file of the newest epoch that there is. A
learner that was replaced writes on into its own file, and if it moves the link, then to its successor's file.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def own(path: Path, epoch: int) -> Path:
    """What the learner of `epoch` writes that is to be shown as `path`."""
    return path.with_name(f".{path.name}.e{epoch:04d}")


def epochs(path: Path) -> list[int]:
    """The epochs of which there is a file (or directory) for `path`, oldest first."""
    pattern = re.compile(re.escape(f".{path.name}.e") + "([0-9]{4,12})")
    if not path.parent.is_dir():
        return []
    found = (pattern.fullmatch(name) for name in os.listdir(path.parent))
    return sorted(int(match[1]) for match in found if match)


def show(path: Path) -> None:
    """Make `path` a link to the file of the newest epoch. Nothing changes where it is one already."""
    while True:
        newest = own(path, epochs(path)[-1])
        if path.is_symlink() and os.readlink(path) == newest.name:
            return
        link = path.with_name(f".{path.name}.link.{secrets.token_hex(4)}")
        link.symlink_to(newest.name)
        os.replace(link, path)
        # Looked at again: between the look and the link a newer learner may have shown its own.


def forget(path: Path, epoch: int) -> None:
    """Delete the files of epochs before `epoch`, which is shown by now."""
    for before in epochs(path):
        if before < epoch:
            old = own(path, before)
            shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)


class Journal:
    """A file of JSON objects, one a line, that each learner continues from the one before it.

    Args:
        path: the plain name.
        epoch: of the learner that writes.
        key: name of the integer that identifies a line.
        kept: which of the earlier lines are part of the history that this learner continues.
    """

    def __init__(self, path: Path, epoch: int, key: str, kept: Callable[[dict[str, Any]], bool]) -> None:
        self.path, self._own, self._key = path, own(path, epoch), key
        lines = [line for line in _lines(path, epoch) if kept(line)]
        self.keys: set[int] = {int(line[key]) for line in lines}
        """The keys of all lines."""
        partial = self._own.with_name(f"{self._own.name}.partial")
        with open(partial, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self._own)
        # Kept open: what a replaced learner writes goes to its own file, also when that has been deleted.
        self._file = open(self._own, "a", encoding="utf-8")  # noqa: SIM115 -- closed by `close`
        show(path)
        forget(path, epoch)

    def append(self, line: dict[str, Any]) -> None:
        """Write one object; it is durable after `sync`."""
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        self.keys.add(int(line[self._key]))
        show(self.path)

    def sync(self) -> None:
        """Make all lines durable."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _lines(path: Path, epoch: int) -> list[dict[str, Any]]:
    """The objects in the newest file before `epoch`: it begins with those of all files before it. A line cut off by a
    crash is left out."""
    before = [other for other in epochs(path) if other < epoch]
    if not before:
        return []
    found = []
    for text in own(path, before[-1]).read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            value = json.loads(text)
        except ValueError:
            continue
        if text.endswith("\n"):
            found.append(value)
    return found
