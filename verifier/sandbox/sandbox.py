"""A sandbox for untrusted programs, with one interface for all levels of confinement.

    outcome = open_sandbox().run(["python3", "-I", "main.py"], {"main.py": source}, b"its stdin", Limits())

A program gets its own directory with the given files, a clean environment, and nothing else: no network, no other files
(except the system's programs and libraries, and what the caller names, read-only), no other processes. When `run`
returns, everything it started has ended and its directory is removed. `start` returns a Running, which exchanges lines
with the program through a channel (descriptor 3 in the program). Safe to use from several threads. The output of
programs is not interpreted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from verifier.sandbox import ownership
from verifier.sandbox.confine import Plan
from verifier.sandbox.folders import remove
from verifier.sandbox.limits import MESSAGE_BYTES, Bounds, Level, Limits, Outcome, SandboxTrouble
from verifier.sandbox.readable import resolve
from verifier.sandbox.running import GRACE_SECONDS, Running

_BOOT = """
import sys
sys.path.append(sys.argv[1])
from verifier.sandbox.spawner import main
main(int(sys.argv[2]), *sys.argv[3:])
"""
_START_SECONDS = 60.0
"""Deadline for the start of the spawner, which tries the bounds of the kernel."""
_FIRST_USER, _USERS = 1_700_000_000, 100_000_000
"""As root, each run gets a random unused user id: it has its own process count and can signal no other process."""


class Sandbox:
    """Runs programs confined at one level.

    `readable`: files and directory trees that programs may read, under their own paths. `programs`: they may also read
    the system's programs, not only its shared libraries. `directory`: where the directories of the runs are made
    (default: the system's temporary directory). The level is not tested here: `levels.open_sandbox` finds the strongest
    that works.
    """

    def __init__(
        self,
        level: Level,
        *,
        readable: Sequence[Path | str] = (),
        programs: bool = True,
        directory: Path | None = None,
    ) -> None:
        self.level = level
        self.readable = resolve((os.path.abspath(path) for path in readable), programs=programs)
        self._bounds: Bounds | None = None
        for left in ownership.abandoned(directory or Path(tempfile.gettempdir())):
            _forget(left)
        self._home = Path(tempfile.mkdtemp(prefix=ownership.PREFIX, dir=directory))
        self._forget = weakref.finalize(self, _forget, self._home, ownership.claim(self._home))
        self._home.chmod(0o711)  # other users may pass through to a directory whose name they know
        self._lock = threading.Lock()
        self._spawner: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None

    @property
    def bounds(self) -> Bounds:
        """The kernel's bounds on memory and disk that are in force. Raises SandboxTrouble."""
        with self._lock:
            if self._requests is None:
                self._start_spawner()
            assert self._bounds is not None
            return self._bounds

    @property
    def info(self) -> dict[str, str]:
        """The level of confinement and the bounds in force, as labels of metrics."""
        return {"sandbox": self.level, "memory": self.bounds.memory, "disk": self.bounds.disk}

    def close(self) -> None:
        """End the spawner (runs under way end when their Running is closed) and remove the directory."""
        with self._lock:
            if self._requests is not None:
                self._requests.close()
                self._requests = None
            if self._spawner is not None:
                self._spawner.wait(GRACE_SECONDS)
                self._spawner = None
        self._forget()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(
        self,
        argv: Sequence[str],
        files: Mapping[str, bytes | str] | None = None,
        stdin: bytes = b"",
        limits: Limits | None = None,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> Outcome:
        """Run a program to its end. Raises SandboxTrouble if the run proves nothing about the program.

        A program that cannot be executed raises SandboxTrouble; as root under bubblewrap it is exit code 127 instead.
        """
        with self.start(argv, files, stdin, limits, environment=environment) as running:
            return running.finish()

    def start(
        self,
        argv: Sequence[str],
        files: Mapping[str, bytes | str] | None = None,
        stdin: bytes = b"",
        limits: Limits | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        channel: bool = False,
    ) -> Running:
        """Start a program in a new directory with `files` (relative path → content); its stdin is `stdin`.

        Its environment is PATH, LANG, HOME and TMPDIR, plus `environment`. With `channel`, descriptor 3 of the program
        is a socket, the other end of `Running.ask`.
        """
        limits = limits or Limits()
        directory = self._home / secrets.token_hex(8)
        user = _FIRST_USER + secrets.randbelow(_USERS) if self.level != "unsafe" and os.getuid() == 0 else None
        plan = Plan(
            argv=list(argv),
            environment={"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", **(environment or {})},
            directory=str(directory),
            readable=list(self.readable.paths),
            links=list(self.readable.links),
            level=self.level,
            user=user,
            limits=limits,
            nonce=secrets.token_hex(16),
        )
        _populate(directory, files or {}, user)
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            # Of each socket and pipe, the Running keeps our end; theirs is closed once the spawner has received it.
            control, its_control = socket.socketpair()
            ours.enter_context(control)
            theirs.enter_context(its_control)
            inner = [_input(stdin)]
            theirs.callback(os.close, inner[0])
            outputs = []
            for _ in range(2):
                reader, writer = os.pipe()
                ours.callback(os.close, reader)
                theirs.callback(os.close, writer)
                outputs.append(reader)
                inner.append(writer)
            line = None
            if channel:
                line, its_line = socket.socketpair()
                ours.enter_context(line)
                theirs.enter_context(its_line)
                inner.append(its_line.fileno())
            ours.callback(remove, directory)
            self._send(plan, [its_control.fileno(), *inner])
            return Running(plan, control, outputs, line, ours.pop_all())

    def _send(self, plan: Plan, descriptors: list[int]) -> None:
        message = json.dumps(dataclasses.asdict(plan)).encode()
        if len(message) >= MESSAGE_BYTES:
            raise SandboxTrouble(f"a command of {len(message)} bytes, limit {MESSAGE_BYTES}; pass long texts as files")
        with self._lock:
            for attempt in range(2):
                if self._requests is None:
                    self._start_spawner()
                assert self._requests is not None
                try:
                    socket.send_fds(self._requests, [message], descriptors)
                    return
                except ConnectionError as error:  # the spawner was killed: start a new one, once
                    self._requests.close()
                    self._requests = None
                    if attempt:
                        raise SandboxTrouble(f"the sandbox's spawner ends right after its start: {error}") from error

    def _start_spawner(self) -> None:
        if self._spawner is not None:
            self._spawner.wait(GRACE_SECONDS)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._spawner = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-c",
                    _BOOT,
                    str(Path(__file__).parents[2]),
                    str(theirs.fileno()),
                    str(self._home),
                ],
                env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", **_session()},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd="/",
            )
        ours.settimeout(_START_SECONDS)
        try:
            found = json.loads(ours.recv(MESSAGE_BYTES) or b"null")
        except OSError as error:
            found, said = None, str(error)
        else:
            said = f"it ended with {self._spawner.wait(GRACE_SECONDS)}" if found is None else ""
        if found is None:
            ours.close()
            self._spawner.kill()
            raise SandboxTrouble(f"the sandbox's spawner did not start within {_START_SECONDS:g} s: {said}")
        ours.settimeout(None)
        self._bounds = Bounds(found["memory"], found["disk"], tuple(found["why"]))
        self._requests = ours


def _session() -> dict[str, str]:
    """The variables by which systemd-run finds an ordinary user's systemd."""
    return {name: os.environ[name] for name in ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS") if name in os.environ}


def _populate(directory: Path, files: Mapping[str, bytes | str], user: int | None) -> None:
    # Other users may pass through (bubblewrap as root without its privileges has to) but cannot list it, and its name
    # cannot be guessed.
    directory.mkdir()
    directory.chmod(0o711)
    for name, content in files.items():
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()):
            raise ValueError(f"file {name!r} lies outside the run's directory; give a relative path without ..")
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(0o600)
    if user is not None:
        for path in (directory, *directory.rglob("*")):
            os.chown(path, user, user)


def _input(data: bytes) -> int:
    """A read-only descriptor with the content `data`; not writable, because its memory counts towards no limit."""
    if not data:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    writable = os.memfd_create("stdin")
    try:
        with open(writable, "wb", closefd=False) as file:
            file.write(data)
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)


def _forget(home: Path, claim: int | None = None) -> None:
    with contextlib.suppress(FileNotFoundError):  # the spawner has removed it
        remove(home)
    if claim is not None:
        os.close(claim)
