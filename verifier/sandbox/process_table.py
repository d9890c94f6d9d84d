"""The descendants of this process and what they have used, read from /proc."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from dataclasses import dataclass, field

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Usage:
    """Resources used by the descendants of this process; `look` updates it, and the totals and the peak never fall."""

    begun: float
    """When they were started, by time.monotonic."""
    cpu: float = 0.0
    starved: float = 0.0
    """Seconds that their main threads waited in the run queue, at most the elapsed time less the CPU time they did get:
    waiting for each other does not count."""
    resident: int = 0
    """Resident memory at the last look, bytes."""
    peak: int = 0
    """The largest `resident` seen, bytes."""
    seen: dict[tuple[int, bytes], int] = field(default_factory=dict)
    """CPU time in ticks of each process at the last look at it, by pid and start time. A parent that ignores SIGCHLD is
    not told what its children have used, and the kernel keeps it nowhere else than in their control group."""
    removed: int = 0
    """Disk use at the last look of files that were removed but are held open, bytes."""

    def look(self, counted: float = 0.0) -> None:
        """Read the current values; `counted`: CPU seconds that the kernel has counted for all of them."""
        tree = below()
        used = sum(sum(int(ticks) for ticks in fields[11:15]) for fields in tree.values()) / _TICK
        self.seen.update(((pid, fields[19]), int(fields[11]) + int(fields[12])) for pid, fields in tree.items())
        self.cpu = max(self.cpu, used, counted, sum(self.seen.values()) / _TICK)
        waited = sum(_waited(pid) for pid in tree)
        self.starved = max(self.starved, min(waited, time.monotonic() - self.begun - self.cpu))
        self.resident = sum(_resident(pid) for pid in tree)
        self.peak = max(self.peak, self.resident)
        self.removed = sum(_removed(pid) for pid in tree)


def below() -> dict[int, list[bytes]]:
    """All descendants, in whatever session or namespace: pid → the fields of /proc/<pid>/stat after the name."""
    children: dict[int, list[int]] = {}
    stats: dict[int, list[bytes]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            fields = read(f"/proc/{entry}/stat").rpartition(b")")[2].split()
            if fields:
                stats[int(entry)] = fields
                children.setdefault(int(fields[1]), []).append(int(entry))
    found: dict[int, list[bytes]] = {}
    level = [os.getpid()]
    while level:
        level = [child for parent in level for child in children.get(parent, ())]
        found.update((pid, stats[pid]) for pid in level)
    return found


def killed_by_the_machine() -> int:
    """How many processes the kernel's OOM killer has killed since boot; 0 where the kernel does not report it."""
    for line in read("/proc/vmstat").splitlines():
        if line.startswith(b"oom_kill "):
            return int(line.split()[1])
    return 0


def read(path: str) -> bytes:
    """The content of a file of /proc; empty if the process has ended."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _resident(pid: int) -> int:
    fields = read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * _PAGE if fields else 0


def _waited(pid: int) -> float:
    """Seconds that a process waited in the run queue; 0 where the kernel does not count them."""
    fields = read(f"/proc/{pid}/schedstat").split()
    return int(fields[1]) / 1e9 if fields else 0.0


def _removed(pid: int) -> int:
    total = 0
    with contextlib.suppress(OSError):  # the process has ended
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            found = os.stat(f"/proc/{pid}/fd/{descriptor}")
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 0 and descriptor != "0":  # 0: its stdin, our file
                total += found.st_blocks * 512
    return total
