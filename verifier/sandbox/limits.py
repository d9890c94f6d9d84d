"""What a confined program may use, what became of it, and the errors of this package. Plain data, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["bubblewrap", "landlock", "unsafe"]
LADDER: tuple[Level, ...] = ("bubblewrap", "landlock")
"""From the strongest down; `unsafe` is never reached by itself."""

Ended = Literal["exit", "signal", "wall", "cpu", "memory", "disk", "output", "stopped", "starved"]
"""`exit` and `signal`: by itself. `stopped`: by the caller. The others name the limit it was killed at; `starved` is
raised as Starved and never in an Outcome."""

MiB = 1 << 20
STRETCH = 4.0
"""Time limits do not count the time a program was ready and got no core, until this many times the limit has passed."""
MESSAGE_BYTES = 1 << 17
"""The largest command with its environment that can be started."""


class SandboxUnavailable(RuntimeError):
    """No level of the ladder works here, or not the one asked for; the message holds what was tried and the remedy."""


class SandboxTrouble(RuntimeError):
    """A run said nothing about the program: the sandbox itself failed, or the machine had no time or memory for it."""


class Starved(SandboxTrouble):
    """The machine gave the program too little time to tell whether it keeps its limit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one run. Raises ValueError for a value that cannot be enforced."""

    wall_seconds: float = 10.0
    """Not counting starvation (see STRETCH)."""
    cpu_seconds: float = 10.0
    """Of each process, rounded up to whole seconds."""
    memory_bytes: int = 512 * MiB
    """Resident memory of everything the run started, watched; see also `address_space`."""
    address_space: bool = True
    """Also refuse, at once, each process more than `memory_bytes` of address space. Off for programs that map much
    more than they use (Lean, Node, the JVM)."""
    processes: int = 1
    """1: it cannot start any other process, only threads. More: so many besides itself are allowed."""
    threads: int = 32
    """Threads beyond one for each process; enforced together with `processes`, as one number of tasks."""
    output_bytes: int = 1 * MiB
    """Of stdout and of stderr, each; more ends the run."""
    file_bytes: int = 16 * MiB
    """The largest file it can write."""
    disk_bytes: int = 64 * MiB
    """All files in its directory together and those it removed but holds open, watched. What one sends itself through a
    socket and closes is not seen, and bounded by open_files times file_bytes."""
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
                raise ValueError(f"{name} = {value}: give {least} to {most}")


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
    """How long it was ready to run and the machine gave it no core, as far as the kernel says."""
    level: Level
