"""The directory of one run as a tmpfs, whose size and number of files the kernel limits.

It is mounted by the run's supervisor in a mount namespace that ends with the run, over the directory in which the
service has put the given files, and is filled with copies of them.
"""

from __future__ import annotations

import os
import stat

from verifier.sandbox import kernel

BLOCK = 4096
_SPARE = 2
"""Blocks and files beyond the limit, so that a program which exceeds it can be told from one which reaches it."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Workspace:
    """The mounted directory. `limit` bytes are the program's, besides the given files; each file counts as a block.

    `user` owns it (None: this process's user). Raises OSError.
    """

    def __init__(self, directory: str, limit: int, user: int | None) -> None:
        kernel.own_mounts(new_user=os.getuid() != 0)
        given = os.open(directory, _FOLDER)
        try:
            blocks, files = _measure(given)
            self._most_blocks, self._most_files = blocks + -(-limit // BLOCK), files + -(-limit // BLOCK)
            options = f"size={BLOCK * (self._most_blocks + _SPARE)},nr_inodes={self._most_files + _SPARE},mode=0711"
            kernel.mount_tmpfs(directory, options if user is None else f"{options},uid={user},gid={user}")
            self._folder = os.open(directory, _FOLDER)
            _copy(given, self._folder, user)
        finally:
            os.close(given)

    def exceeded(self) -> bool:
        """Whether the program has used more than its limit; files that were removed but are still in use count."""
        found = os.fstatvfs(self._folder)
        blocks, files = found.f_blocks - found.f_bfree, found.f_files - found.f_ffree
        return blocks > self._most_blocks or files > self._most_files


def _measure(folder: int) -> tuple[int, int]:
    """Blocks and inodes of everything in a folder, itself included."""
    blocks, files = 1, 1
    for name in os.listdir(folder):
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            inner = os.open(name, _FOLDER, dir_fd=folder)
            more = _measure(inner)
            os.close(inner)
            blocks, files = blocks + more[0], files + more[1]
        else:
            blocks, files = blocks + -(-found.st_size // BLOCK), files + 1
    return blocks, files


def _copy(source: int, target: int, user: int | None) -> None:
    """Copy regular files and folders, with their modes."""
    for name in os.listdir(source):
        found = os.stat(name, dir_fd=source, follow_symlinks=False)
        mode = stat.S_IMODE(found.st_mode)
        if stat.S_ISDIR(found.st_mode):
            os.mkdir(name, mode, dir_fd=target)
            inner = os.open(name, _FOLDER, dir_fd=source)
            made = os.open(name, _FOLDER, dir_fd=target)
            _copy(inner, made, user)
            os.close(inner)
        else:
            inner = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
            made = os.open(name, _NEW_FILE, mode, dir_fd=target)
            while block := os.read(inner, 1 << 20):
                while block:
                    block = block[os.write(made, block) :]
            os.close(inner)
        if user is not None:
            os.fchown(made, user, user)
        os.close(made)
