"""What /proc says about the processes below this one: who they are, and what they have used. Reads only."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from dataclasses import dataclass

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Usage:
    """What the processes below this one have used; `look` brings it up to date, and nothing in it ever falls."""

    begun: float
    """When they began, by time.monotonic."""
    cpu: float = 0.0
    starved: float = 0.0
    """Seconds their main threads stood in the run queue, as far as they did not compete with each other: time on all
    cores together that they did have does not count."""
    resident: int = 0
    """Bytes, at the last look."""
    peak: int = 0
    removed: int = 0
    """Bytes at the last look of files that have no name any more and are held open."""

    def look(self) -> None:
        """Ask the kernel."""
        tree = below()
        used = sum(sum(int(ticks) for ticks in fields[11:15]) for fields in tree.values()) / _TICK
        self.cpu = max(self.cpu, used)
        waited = sum(_waited(pid) for pid in tree)
        self.starved = max(self.starved, min(waited, time.monotonic() - self.begun - self.cpu))
        self.resident = sum(_resident(pid) for pid in tree)
        self.peak = max(self.peak, self.resident)
        self.removed = sum(_removed(pid) for pid in tree)


def below() -> dict[int, list[bytes]]:
    """Everything below this process, in whatever session or namespace: pid → the fields of its stat after the name."""
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
    """How many processes the kernel has killed for want of memory since it started; 0 where it does not say."""
    for line in read("/proc/vmstat").splitlines():
        if line.startswith(b"oom_kill "):
            return int(line.split()[1])
    return 0


def read(path: str) -> bytes:
    """A file of /proc; empty if the process has ended."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _resident(pid: int) -> int:
    fields = read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * _PAGE if fields else 0


def _waited(pid: int) -> float:
    """Seconds that a process stood in the run queue; 0 where the kernel does not count them."""
    fields = read(f"/proc/{pid}/schedstat").split()
    return int(fields[1]) / 1e9 if fields else 0.0


def _removed(pid: int) -> int:
    total = 0
    with contextlib.suppress(OSError):  # it ended meanwhile
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            found = os.stat(f"/proc/{pid}/fd/{descriptor}")
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 0 and descriptor != "0":  # 0: what we gave it to read
                total += found.st_blocks * 512
    return total
