"""Running untrusted programs: one interface, whichever level of the ladder works here.

    outcome = Sandbox().run(["python3", "-I", "main.py"], {"main.py": source}, b"its stdin", Limits())

A program gets a directory of its own with the given files, a clean environment, and nothing else: no network, no other
files (but the system's programs and libraries, to read), no other processes. When `run` returns, nothing it started is
left and its directory is gone. `start` gives a Running to talk with through a channel (descriptor 3 in the program).
Safe to use from several threads. Never interprets what a program says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from verifier.sandbox.confine import Plan
from verifier.sandbox.limits import Ended, Level, Limits, Outcome, SandboxTrouble
from verifier.sandbox.spawner import MESSAGE_BYTES

_BOOT = "import sys; sys.path.append(sys.argv[1]); from verifier.sandbox.spawner import main; main(int(sys.argv[2]))"
_GRACE_SECONDS = 15.0
"""Beyond the wall limit: how long a supervisor may take to end a run and report before that is trouble."""
_FIRST_USER, _USERS = 1_700_000_000, 100_000_000
"""As root, each run gets a user id nobody has: its own count of processes, and nobody it may signal."""


class Sandbox:
    """Runs programs confined at one level; `readable` trees are shown to them beside the system's, under their paths.

    `directory`: where the runs' directories are made (default: the system's temporary directory). The level is taken
    as given: `ladder.climb` finds the strongest that works.
    """

    def __init__(self, level: Level, *, readable: Sequence[Path | str] = (), directory: Path | None = None) -> None:
        self.level = level
        self._readable = [os.path.realpath(path) for path in readable]
        self._home = Path(tempfile.mkdtemp(prefix="sieve-sandbox-", dir=directory))
        self._home.chmod(0o711)  # other users may pass through to a directory whose name they were told
        self._lock = threading.Lock()
        self._spawner: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None

    def close(self) -> None:
        """End the spawner (runs under way end with their Running) and remove the directory."""
        with self._lock:
            if self._requests is not None:
                self._requests.close()
                self._requests = None
            if self._spawner is not None:
                self._spawner.wait(_GRACE_SECONDS)
                self._spawner = None
        shutil.rmtree(self._home, ignore_errors=True)

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
        """Run a program to its end. Raises SandboxTrouble if that says nothing about the program."""
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
        """Start a program in a directory holding `files` (relative path → content); its stdin is `stdin`.

        `environment` is added to PATH, LANG, HOME and TMPDIR, which are all it has otherwise.
        """
        limits = limits or Limits()
        directory = self._home / secrets.token_hex(8)
        user = _FIRST_USER + secrets.randbelow(_USERS) if self.level != "unsafe" and os.getuid() == 0 else None
        plan = Plan(
            argv=list(argv),
            environment={"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", **(environment or {})},
            directory=str(directory),
            readable=self._readable,
            level=self.level,
            user=user,
            limits=limits,
            nonce=secrets.token_hex(16),
        )
        _populate(directory, files or {}, user)
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            # Each socket or pipe: our end lives in the Running, theirs only until the spawner has it.
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
            ours.callback(_remove, directory)
            self._send(plan, [its_control.fileno(), *inner])
            return Running(plan, control, outputs, line, ours.pop_all())

    def _send(self, plan: Plan, descriptors: list[int]) -> None:
        message = json.dumps(dataclasses.asdict(plan)).encode()
        if len(message) >= MESSAGE_BYTES:
            raise SandboxTrouble(
                f"the command takes {len(message)} bytes, at most {MESSAGE_BYTES} can be sent; pass what is long as files"
            )
        with self._lock:
            for attempt in range(2):
                if self._requests is None:
                    self._start_spawner()
                assert self._requests is not None
                try:
                    socket.send_fds(self._requests, [message], descriptors)
                    return
                except OSError as error:  # somebody ended it: a new one, once
                    self._requests.close()
                    self._requests = None
                    if attempt:
                        raise SandboxTrouble(f"the sandbox's spawner ends as soon as it is started: {error}") from error

    def _start_spawner(self) -> None:
        if self._spawner is not None:
            self._spawner.wait(_GRACE_SECONDS)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._spawner = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _BOOT, str(Path(__file__).parents[2]), str(theirs.fileno())],
                env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd="/",
            )
        self._requests = ours


class Running:
    """One confined program under way. A context manager: leaving it ends the program and everything it started."""

    def __init__(
        self,
        plan: Plan,
        control: socket.socket,
        outputs: list[int],
        channel: socket.socket | None,
        resources: contextlib.ExitStack,
    ) -> None:
        self._plan, self._control, self._channel, self._resources = plan, control, channel, resources
        self._begun = time.monotonic()
        self._texts = {descriptor: bytearray() for descriptor in outputs}
        self._names = dict(zip(outputs, ("stdout", "stderr"), strict=True))
        self._open = set(outputs)
        self._flooded = False
        self._received = bytearray()
        self._outcome: Outcome | None = None
        self._poll = select.poll()
        for descriptor in outputs:
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.POLLIN)
        self._poll.register(control, select.POLLIN)
        if channel is not None:
            channel.setblocking(False)
            self._poll.register(channel, select.POLLIN)

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._outcome is None and kind is None:
                self.stop()
        finally:
            self._resources.close()  # closing the control socket ends what still runs

    def ask(self, line: bytes, seconds: float, max_bytes: int) -> bytes | None:
        """Send a line (no newline in it) through the channel and wait for one back, without its newline.

        None if none came within `seconds`, the program ended or closed the channel, or the line is longer than
        `max_bytes`: `finish` or `stop` says which. Raises SandboxTrouble.
        """
        if self._channel is None:
            raise ValueError("this program was started without a channel")
        if self._received:  # it spoke before it was asked
            return None
        until = time.monotonic() + seconds
        rest = memoryview(line + b"\n")
        while self._outcome is None and time.monotonic() < until:
            if rest:
                self._poll.modify(self._channel, select.POLLIN | select.POLLOUT)
                try:
                    rest = rest[self._channel.send(rest) :]
                except BlockingIOError:
                    pass
                except OSError:  # it closed its end
                    return None
                if not rest:
                    self._poll.modify(self._channel, select.POLLIN)
            if not self._turn(until, max_bytes):
                return None
            end = self._received.find(b"\n")
            if end >= 0:
                answer = bytes(self._received[:end])
                del self._received[: end + 1]
                return answer
            if len(self._received) > max_bytes:
                return None
        return None

    def finish(self) -> Outcome:
        """Wait for the end by itself or by a limit. Raises SandboxTrouble."""
        until = self._begun + self._plan.limits.wall_seconds + _GRACE_SECONDS
        while self._outcome is None:
            if time.monotonic() >= until:
                raise SandboxTrouble(f"no report {_GRACE_SECONDS:g} s after the deadline of the run")
            self._turn(until, 0)
        return self._outcome

    def stop(self) -> Outcome:
        """End it now. Raises SandboxTrouble."""
        self._ask_for_the_end()
        return self.finish()

    def _turn(self, until: float, channel_bytes: int) -> bool:
        """Wait for one event and take what came; False when the program closed the channel."""
        open_channel = True
        for descriptor, _ in self._poll.poll(max(0.0, until - time.monotonic()) * 1000):
            if descriptor == self._control.fileno():
                self._take_report()
            elif descriptor in self._texts:
                self._take_output(descriptor)
            elif self._channel is not None:
                open_channel = self._take_channel(channel_bytes)
        return open_channel

    def _take_channel(self, most: int) -> bool:
        assert self._channel is not None
        if len(self._received) > most:
            self._poll.unregister(self._channel)
            return True
        try:
            data = self._channel.recv(1 << 16)
        except BlockingIOError:
            return True
        except ConnectionError:
            data = b""
        if not data:
            self._poll.unregister(self._channel)
            return False
        self._received += data
        return True

    def _take_output(self, descriptor: int) -> bool:
        """Take what is there; False if there was nothing."""
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return False
        if not data:  # every writer is gone
            self._poll.unregister(descriptor)
            self._open.discard(descriptor)
            return False
        text, most = self._texts[descriptor], self._plan.limits.output_bytes
        text += data[: most - len(text) + 1]
        if len(text) > most and not self._flooded:
            self._flooded = True
            self._ask_for_the_end()
        return True

    def _ask_for_the_end(self) -> None:
        with contextlib.suppress(OSError):  # it has reported and gone
            self._control.shutdown(socket.SHUT_WR)

    def _take_report(self) -> None:
        data = self._control.recv(1 << 16)
        if not data:
            raise SandboxTrouble("the run's supervisor ended without a report")
        report = json.loads(data)
        if report["nonce"] != self._plan.nonce:
            raise SandboxTrouble("a report of another run")
        if report["trouble"]:
            raise SandboxTrouble(f"{self._plan.level}: {report['trouble']}; {self._said('stderr')[-300:]!r}")
        for descriptor in self._texts:  # what was still in the pipes when it ended; nobody can write any more
            while descriptor in self._open and not self._flooded and self._take_output(descriptor):
                pass
        ended, code = self._explain(report)
        self._outcome = Outcome(
            ended=ended,
            code=code,
            stdout=self._said("stdout"),
            stderr=self._said("stderr"),
            seconds=report["seconds"],
            cpu_seconds=report["cpu"],
            peak_bytes=report["peak"],
            starved_seconds=report["starved"],
            level=self._plan.level,
        )

    def _explain(self, report: dict[str, float | int | str | bool]) -> tuple[Ended, int]:
        code = int(report["code"])
        if self._flooded:
            return "output", 0
        if report["ended"] != "exit":
            return report["ended"], 0  # type: ignore[return-value]
        if code >= 0:
            return "exit", code
        limits = self._plan.limits
        if code == -24 or (code == -9 and float(report["cpu"]) >= limits.cpu_seconds):
            return "cpu", 0
        if code == -9 and report["machine_killed"] and int(report["peak"]) < 0.9 * limits.memory_bytes:
            raise SandboxTrouble("the machine is out of memory and killed the program; lower verifier concurrency")
        return "signal", -code

    def _said(self, name: str) -> bytes:
        (found,) = (bytes(text) for descriptor, text in self._texts.items() if self._names[descriptor] == name)
        return found[: self._plan.limits.output_bytes]


def _populate(directory: Path, files: Mapping[str, bytes | str], user: int | None) -> None:
    # Others may pass through (bubblewrap, as root without its privileges, must), but neither list it nor guess its name.
    directory.mkdir()
    directory.chmod(0o711)
    for name, content in files.items():
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()):
            raise ValueError(f"file {name!r} would be outside the run's directory; give a relative path without ..")
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(0o600)
    if user is not None:
        for path in (directory, *directory.rglob("*")):
            os.chown(path, user, user)


def _input(data: bytes) -> int:
    """A descriptor that reads `data` and cannot be written: its memory counts as nobody's."""
    if not data:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    writable = os.memfd_create("stdin")
    try:
        with open(writable, "wb", closefd=False) as file:
            file.write(data)
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)


def _remove(directory: Path) -> None:
    """Remove a run's directory, also where the program left folders that cannot be entered (it is ours, not root's)."""
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        for folder, _, _ in os.walk(directory):
            os.chmod(folder, 0o700)
        shutil.rmtree(directory)
