"""Measuring and removing folders filled by a hostile program, without recursion and without following links."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

MAX_DEPTH = 200
"""The deepest nesting of folders that is measured; deeper ones count as over the limit."""
_BLOCK = 4096
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def exceeds(directory: str, limit: int, already: int = 0) -> bool:
    """Whether a folder, which may be changing, holds more than `limit` bytes; every entry counts as at least one block.

    `already` bytes counted elsewhere are added. Folders that cannot be read or are deeper than MAX_DEPTH count as over
    the limit.
    """
    total = already
    open_folders = [os.open(directory, _FOLDER)]
    names = [os.listdir(open_folders[0])]
    try:
        while open_folders:
            if not names[-1]:
                names.pop()
                os.close(open_folders.pop())
                continue
            name = names[-1].pop()
            try:
                found = os.stat(name, dir_fd=open_folders[-1], follow_symlinks=False)
                total += max(_BLOCK, found.st_blocks * 512)
                if total > limit or len(open_folders) > MAX_DEPTH:
                    return True
                if stat.S_ISDIR(found.st_mode):
                    inner = os.open(name, _FOLDER, dir_fd=open_folders[-1])
                    open_folders.append(inner)
                    names.append([])
                    names[-1] = os.listdir(inner)
            except PermissionError:  # the program took away the right to read it
                return True
            except OSError:  # the program removed it meanwhile
                continue
        return False
    finally:
        for folder in open_folders:
            os.close(folder)


def remove(directory: Path) -> None:
    """Remove a folder that no process uses any more. Raises OSError.

    The contents of each subfolder are moved to the top before it is removed, so that no nesting is too deep.
    """
    prefix = secrets.token_hex(8)
    lifted = 0
    top = os.open(directory, _FOLDER)
    try:
        while entries := os.listdir(top):
            for name in entries:
                if not stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
                    os.unlink(name, dir_fd=top)
                    continue
                os.chmod(name, 0o700, dir_fd=top)
                folder = os.open(name, _FOLDER, dir_fd=top)
                try:
                    for inner in os.listdir(folder):
                        if stat.S_ISDIR(os.stat(inner, dir_fd=folder, follow_symlinks=False).st_mode):
                            os.chmod(inner, 0o700, dir_fd=folder)  # moving a folder requires write permission on it
                        lifted += 1
                        os.rename(inner, f"{prefix}-{lifted}", src_dir_fd=folder, dst_dir_fd=top)
                finally:
                    os.close(folder)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(directory)
