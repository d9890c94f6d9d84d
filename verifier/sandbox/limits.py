"""Data types of the sandbox: the limits of a run, its outcome, and the package's errors. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["bubblewrap", "landlock", "unsafe"]
LEVELS: tuple[Level, ...] = ("bubblewrap", "landlock")
"""Levels in order of preference, strongest first; `unsafe` is used only where it is asked for."""

Ended = Literal["exit", "signal", "wall", "cpu", "memory", "disk", "output", "stopped", "starved"]
"""How a program ended. `exit` and `signal`: by itself. `stopped`: by the caller. The others name the limit at which it
was killed; `starved` is raised as Starved and never appears in an Outcome."""

MiB = 1 << 20
STRETCH = 4.0
"""Time limits do not count the time in which a program was ready to run but got no core, up to this many times the
limit in all."""
MESSAGE_BYTES = 1 << 17
"""The largest plan (command, environment, limits) that can be sent to the spawner, bytes of JSON."""


class SandboxUnavailable(RuntimeError):
    """No level of confinement works here, or not the one asked for; the message lists what was tried and the remedy."""


class SandboxTrouble(RuntimeError):
    """A run that proves nothing about the program: the sandbox failed, or the machine lacked time or memory for it."""


class Starved(SandboxTrouble):
    """The machine gave the program too little CPU time to tell whether it keeps its time limit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one run. Raises ValueError for a value that cannot be enforced."""

    wall_seconds: float = 10.0
    """Wall-clock time, not counting starvation (see STRETCH)."""
    cpu_seconds: float = 10.0
    """CPU time of each process, rounded up to whole seconds."""
    memory_bytes: int = 512 * MiB
    """Resident memory of everything the run started, checked periodically; see also `address_space`."""
    address_space: bool = True
    """Also limit the address space of each process to `memory_bytes`, enforced at once by the kernel. Off for programs
    that map much more than they use (Lean, Node, the JVM)."""
    processes: int = 1
    """1: the program can start no other process, only threads. Above 1: it may start that many besides itself."""
    threads: int = 32
    """Threads beyond one for each process; enforced together with `processes`, as one number of tasks."""
    output_bytes: int = 1 * MiB
    """Of stdout and of stderr, each; more ends the run."""
    file_bytes: int = 16 * MiB
    """Size of the largest file that the program can write."""
    disk_bytes: int = 64 * MiB
    """All files in the run's directory plus those removed but still open, checked periodically. A file whose descriptor
    was sent through a socket and closed is not seen; such files are bounded by open_files times file_bytes."""
    open_files: int = 64

    def __post_init__(self) -> None:
        for name, least, most in (
            ("wall_seconds", 0.01, 86_400),
            ("cpu_seconds", 0.01, 86_400),
            ("memory_bytes", 16 * MiB, 1 << 44),
            ("processes", 1, 10_000),
            ("threads", 0, 10_000),
            ("output_bytes", 1, 1 << 30),
            ("file_bytes", 0, 1 << 44),
            ("disk_bytes", 0, 1 << 44),
            ("open_files", 16, 100_000),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name} = {value}: must be between {least} and {most}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. Everything in it except `stdout` and `stderr` was measured outside the sandbox."""

    ended: Ended
    code: int
    """Exit code if `ended` is `exit`, the signal's number if `signal`, else 0."""
    stdout: bytes
    stderr: bytes
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    """Largest resident memory of one process."""
    starved_seconds: float
    """How long it was ready to run but had no core, as far as the kernel reports it."""
    level: Level

    @property
    def stderr_tail(self) -> str:
        """The last 300 bytes of stderr as text, for messages."""
        return self.stderr[-300:].decode("utf-8", "replace").strip()
