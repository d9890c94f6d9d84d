"""What programs can read besides their own directory: the system's libraries, perhaps its programs, and named paths.

Directories that hold data of the machine's users (/usr/src, /usr/share, /opt, /home, /srv, /var) are never among the
system's. Paths are resolved once, when a sandbox is made: real paths, and the symbolic links that lead to them.
"""

from __future__ import annotations

import glob
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

PROGRAMS = ("/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/libexec", "/usr/local/lib")
"""The system's programs, and what they read besides LIBRARIES."""
LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64")
_STARTING = ("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo", "/bin/sh", "/usr/bin/setpriv")
"""What the sandbox itself needs to start and to test a program, and the time zones."""


@dataclass(frozen=True, slots=True)
class Readable:
    """Real paths of files and trees, none inside another, and the links (path, target) that lead to them."""

    paths: tuple[str, ...]
    links: tuple[tuple[str, str], ...]

    def holds(self, path: str) -> str | None:
        """The tree in which an existing path lies, links resolved; None if it lies in none."""
        real = os.path.realpath(path)
        return next((tree for tree in self.paths if _inside(real, tree)), None)


def resolve(named: Iterable[str], *, programs: bool) -> Readable:
    """The named paths with those of the system; `programs`: its programs too, not only its shared libraries.

    Paths that do not exist are left out.
    """
    links: dict[str, str] = {}
    found: set[str] = set()
    for path in (*_STARTING, *(PROGRAMS + LIBRARIES if programs else _shared_libraries()), *named):
        real = _follow(path, links)
        if os.path.exists(real):
            found.add(real)
    paths = tuple(sorted(path for path in found if not any(_inside(path, tree) for tree in found - {path})))
    # Inside a tree that is mounted as a whole, links are there already.
    outside = {path: target for path, target in links.items() if not any(_inside(path, tree) for tree in paths)}
    return Readable(paths, tuple(sorted(outside.items())))


def _shared_libraries() -> Sequence[str]:
    """Directories that hold shared libraries and little else, and single libraries of other directories."""
    machine = platform.machine()
    own = [path for top in ("/lib", "/usr/lib") for path in glob.glob(f"{top}/{machine}-linux-*")]
    if not own:  # not Debian's layout
        own = [path for path in ("/lib", "/usr/lib") if not os.path.isdir("/usr/lib64") or os.path.islink("/usr/lib64")]
    return [*own, "/lib64", "/usr/lib64", *glob.glob("/usr/local/lib/*.so*")]


def _follow(path: str, links: dict[str, str]) -> str:
    """The real path, adding each link that leads to it to `links`."""
    done = ""
    rest = [part for part in path.split("/") if part]
    for _ in range(1000):
        if not rest:
            break
        done = f"{done}/{rest.pop(0)}"
        if os.path.islink(done):
            target = os.readlink(done)
            links[done] = target
            parts = [part for part in target.split("/") if part]
            if target.startswith("/"):
                done, rest = "", parts + rest
            else:
                done, rest = os.path.dirname(done).rstrip("/"), parts + rest
            while rest and rest[0] == "..":
                done, rest = os.path.dirname(done).rstrip("/"), rest[1:]
    return os.path.realpath(path) if rest else done or "/"


def _inside(path: str, tree: str) -> bool:
    return path == tree or path.startswith(f"{tree.rstrip('/')}/")
