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

MemoryBound = Literal["cgroup2", "cgroup1", "scope", "rlimits", "none"]
DiskBound = Literal["tmpfs", "sampled"]
GROUPED: frozenset[MemoryBound] = frozenset({"cgroup2", "cgroup1", "scope"})
"""Bounds on memory by a control group for each run."""

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
class Bounds:
    """How the kernel bounds what a run uses on this machine; each was exceeded once, to see that it holds."""

    memory: MemoryBound
    """`cgroup2`, `cgroup1`, `scope` (systemd's): one control group for each run, which bounds its memory and its tasks.
    `rlimits`: limits of each process, and a system call filter against memory that they do not count. `none`: not even
    that filter can be installed."""
    disk: DiskBound
    """`tmpfs`: a file system of the run's own. `sampled`: a limit on each file; the sum is measured at intervals."""
    why: tuple[str, ...]
    """Why stronger bounds do not work here, one line each."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one run. Raises ValueError for a value that cannot be enforced."""

    wall_seconds: float = 10.0
    """Wall-clock time, not counting starvation (see STRETCH)."""
    cpu_seconds: float = 10.0
    """CPU time of each process, rounded up to whole seconds."""
    memory_bytes: int = 512 * MiB
    """Memory of everything the run started. In a control group: all that the kernel allocates for it, besides
    `disk_bytes` for its files where they are in memory (Bounds.disk). Without one: the resident memory, measured at
    intervals, and limits of each process; see `address_space`."""
    address_space: bool = True
    """Also limit the address space of each process to `memory_bytes`. Off for programs that map much more than they use
    (Lean, Node, the JVM); without a control group, their private writable memory is limited to four times
    `memory_bytes` for each process."""
    processes: int = 1
    """1: the program can start no other process, only threads. Above 1: it may start that many besides itself."""
    threads: int = 32
    """Threads beyond one for each process; enforced together with `processes`, as one number of tasks."""
    output_bytes: int = 1 * MiB
    """Of stdout and of stderr, each; more ends the run."""
    file_bytes: int = 16 * MiB
    """Size of the largest file that the program can write."""
    disk_bytes: int = 64 * MiB
    """All files that the run writes, each counted as at least 4 KiB. On a tmpfs (Bounds.disk) the kernel refuses more.
    Otherwise they are measured at intervals, and files that were removed are seen only while a descriptor is open."""
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
