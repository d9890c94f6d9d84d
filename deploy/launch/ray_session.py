"""The privacy of a Ray that runs on this machine alone: loopback addresses, a directory and a token of this user's.

By itself Ray listens on all interfaces, makes its directories writable for everyone and its token's file readable.
Whoever reaches its ports with the token, or writes to its directories, runs code as this user.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import ray
from ray._private.authentication.authentication_token_generator import generate_new_authentication_token

LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's switch, named after where it is off by default, for clusters of several machines. Without them Ray has the
address 127.0.0.1, and all of its servers listen on that only."""
TOKENS = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
"""Environment variables with which a user has chosen how Ray authenticates."""
LONGEST = 40
"""Bytes of the directory's path: Ray's sockets lie 66 bytes below, and the path of a socket has at most 107."""


def make_private() -> Path:
    """Prepare this process for a `ray.init` of this machine; returns the directory for Ray's sessions.

    Ray opens that one to everyone; nobody else can enter the directory it is in (0700).

    Processes that Ray starts take over the settings through the environment. Raises OSError when no directory can be
    made.
    """
    os.environ[LOOPBACK] = "0"
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False  # was read from the environment when ray was imported
    directory = _directory()
    if not any(os.environ.get(name) for name in TOKENS):
        token = directory / "auth_token"
        _write_once(token, generate_new_authentication_token())
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    return directory / "ray"


def _directory() -> Path:
    """A directory of this user's that nobody else can enter; always the same, unless somebody else took its name."""
    parent = tempfile.gettempdir()
    wanted = Path(
        parent if len(os.fsencode(parent)) <= LONGEST - len("/sieve-ray-XXXXXXXX/ray") else "/tmp",
        f"sieve-ray-{os.getuid()}",
    )
    try:
        wanted.mkdir(mode=0o700)
    except FileExistsError:
        found = wanted.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return Path(tempfile.mkdtemp(prefix="sieve-ray-", dir=wanted.parent))
        wanted.chmod(0o700)
    return wanted


def _write_once(path: Path, text: str) -> None:
    """Write a file that only its owner can read, unless it is there: runs side by side share one token."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
        file.write(text)
    try:
        os.link(temporary, path)
    except FileExistsError:
        path.chmod(0o600)
    finally:
        temporary.unlink()
