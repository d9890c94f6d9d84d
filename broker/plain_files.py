"""Opening of files in directories that other people made: regular files, of bounded size where they are read whole.

Opening a pipe waits for its other end, opening a device can act on it, and reading one may never end. So what a name
stands for is looked at before it is opened.
"""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a symbolic link",
}


class NotPlain(OSError):
    """A name that stands for something else than a regular file, or a file that is too large; `strerror` says what."""

    def __init__(self, reason: str, path: Path | str) -> None:
        super().__init__(0, reason, str(path))


def check_plain(path: Path | str, *, directory: int | None = None, links: bool = True) -> os.stat_result:
    """What is known about a regular file, which is not opened.

    `directory`: the descriptor of the directory that `path` is in. `links`: whether symbolic links are followed. Raises
    NotPlain, and OSError when there is no such file.
    """
    found = os.stat(path, dir_fd=directory, follow_symlinks=links)
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "of another kind")
        raise NotPlain(f"is {kind}, not a regular file", path)
    return found


def open_plain(path: Path | str, *, directory: int | None = None, links: bool = True) -> BufferedReader:
    """A regular file, open for reading; arguments and errors are those of `check_plain`."""
    before = check_plain(path, directory=directory, links=links)
    # Something else may have taken the name since: without O_NONBLOCK a pipe would be waited for.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW)
    file = open(os.open(path, flags, dir_fd=directory), "rb")  # noqa: SIM115 -- the caller closes it
    if not os.path.samestat(before, os.fstat(file.fileno())):
        file.close()
        raise NotPlain("was replaced while it was opened", path)
    return file


def read_plain(path: Path | str, most: int, *, directory: int | None = None, links: bool = True) -> bytes:
    """The content of a regular file of at most `most` bytes. Errors are those of `check_plain`."""
    with open_plain(path, directory=directory, links=links) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise NotPlain(f"has more than {most} bytes", path)
    return data
