"""Control groups: the kernel's bound on the memory and the number of tasks of one run, and its report of OOM kills.

Each run has a group of its own, made by its supervisor and removed at its end. Every page that the run causes to be
allocated is charged to it, whichever way it was obtained: private and shared mappings, files on its tmpfs, pipes,
sockets and page tables. Sources: kernel documentation, admin-guide/cgroup-v2 and admin-guide/cgroup-v1/memory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from verifier.sandbox.ownership import abandoned, claim

SYSTEMD = Path("/run/systemd/system")
"""Exists where systemd is the init system."""
_SERVICES = "sieve-services"
"""The group into which the processes of a version 2 group move, because only a group without any can be divided."""
_SWAP_BYTES = 1 << 20
"""Swap that a version 1 group may use."""
_VACATE_SECONDS = 2.0
_REMOVE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Group:
    """The group of one run: one folder in version 2, one for each controller in version 1, memory first."""

    folders: tuple[Path, ...]
    version: int

    def enter(self) -> None:
        """Move the calling process, which must be single-threaded, into the group."""
        for folder in self.folders:
            # Version 1 moves a single thread without waiting for a grace period of the kernel.
            _write(folder / ("cgroup.procs" if self.version == 2 else "tasks"), "0")

    def killed(self) -> int:
        """How many processes of the group an OOM killer has killed: the group's own, or the machine's."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        return _field(self.folders[0] / name, "oom_kill")

    def exhausted(self) -> bool:
        """Whether the group has reached its own memory limit."""
        if self.version == 2:
            return _field(self.folders[0] / "memory.events", "oom") > 0
        return int((self.folders[0] / "memory.failcnt").read_text()) > 0

    def cpu_seconds(self) -> float:
        """CPU time of all its processes, ended ones included; 0 where the kernel does not count it for groups."""
        for folder in self.folders:
            with contextlib.suppress(OSError):
                if self.version == 2:
                    return _field(folder / "cpu.stat", "usage_usec") / 1e6
                return int((folder / "cpuacct.usage").read_text()) / 1e9
        return 0.0

    def kill(self) -> None:
        """Send SIGKILL to every process in the group. New processes cannot be started from then on."""
        for folder in self.folders:
            with contextlib.suppress(OSError):  # the controller `pids` is not available
                _write(folder / "pids.max", "0")
        try:
            _write(self.folders[0] / "cgroup.kill", "1")
        except OSError:  # version 1, or Linux before 5.14
            for pid in (self.folders[0] / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)

    def remove(self) -> None:
        """Remove the group, in which no process may be left. What cannot be removed yet is left to Groups.remove."""
        for folder in self.folders:
            with contextlib.suppress(OSError):
                folder.rmdir()


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of one sandbox, below folders of its own, which the descriptors `claims` keep."""

    folders: tuple[Path, ...]
    version: int
    claims: tuple[int, ...] = ()

    def make(self, name: str, memory_bytes: int, tasks: int) -> Group:
        """A new group with its limits; memory includes the run's files on a tmpfs, and excludes swap. Raises OSError.

        `tasks` is enforced where the controller `pids` is available.
        """
        group = Group(tuple(folder / name for folder in self.folders), self.version)
        for folder in group.folders:
            folder.mkdir()
        memory = group.folders[0]
        if self.version == 2:
            _write(memory / "memory.max", str(memory_bytes))
            _write_if_there(memory / "memory.swap.max", "0")
            _write_if_there(memory / "memory.oom.group", "1")
        else:
            _write(memory / "memory.limit_in_bytes", str(memory_bytes))
            # Not the same limit, at which the kernel would count in neither counter that the limit was reached.
            _write_if_there(memory / "memory.memsw.limit_in_bytes", str(memory_bytes + _SWAP_BYTES))
        for folder in group.folders:
            _write_if_there(folder / "pids.max", str(tasks))
        return group

    def remove(self) -> None:
        """End whatever is left in the groups and remove them; waits up to a second for processes that are ending."""
        until = time.monotonic() + _REMOVE_SECONDS
        left = [Group((folder,), self.version) for top in self.folders for folder in _below(top)]
        while left and time.monotonic() < until:
            for group in left:
                with contextlib.suppress(OSError):
                    group.kill()
                group.remove()
            left = [group for group in left if group.folders[0].exists()]
            if left:
                time.sleep(0.01)
        for top in self.folders:
            with contextlib.suppress(OSError):
                top.rmdir()
        for descriptor in self.claims:
            os.close(descriptor)


def version_2(name: str) -> Groups:
    """Groups below this process's own version 2 group, if it was delegated: writable, with the controller `memory`.

    All processes of that group move into one below it, since the kernel divides only groups without processes. Under
    systemd the unit must say Delegate=: otherwise systemd stops it whole at the first OOM kill of a program
    (OOMPolicy=stop). Raises OSError with the reason.
    """
    own = _own("cgroup2", "")
    if own.name == _SERVICES:  # made by an earlier sandbox
        own = own.parent
    if SYSTEMD.is_dir() and not any(_delegated(folder) for folder in (own, *own.parents)):
        raise OSError(f"{own} belongs to a unit of systemd without Delegate=yes")
    wanted = [one for one in ("memory", "pids") if one in (own / "cgroup.controllers").read_text().split()]
    if "memory" not in wanted:
        raise OSError(f"{own} has no controller `memory`")
    top = own / name
    held = claim(top)  # the first step, since it fails where nothing was delegated
    _sweep(own, 2)
    try:
        enable = " ".join(f"+{one}" for one in wanted)
        if "memory" not in (own / "cgroup.subtree_control").read_text().split():
            _vacate(own)
            _write(own / "cgroup.subtree_control", enable)
        _write(top / "cgroup.subtree_control", enable)
    except OSError:
        top.rmdir()
        os.close(held)
        raise
    return Groups((top,), 2, (held,))


def version_1(name: str) -> Groups:
    """Groups below this process's own version 1 groups of `memory` and, if there, `pids` and `cpuacct`. Raises OSError.

    A folder of that name may be there: left by an earlier process of the same sandbox.
    """
    made: dict[Path, int] = {}
    for controller in ("memory", "pids", "cpuacct"):
        try:
            if controller == "cpuacct" and not _alone(controller):
                continue  # a group would also change how much CPU time its processes get
            own = _own("cgroup", controller)
            top = own / name
            if top in made:  # both controllers are in one hierarchy
                continue
            made[top] = claim(top)
        except OSError:
            if controller == "memory":
                raise
            continue
        _sweep(own, 1)
    return Groups(tuple(made), 1, tuple(made.values()))


def _sweep(own: Path, version: int) -> None:
    """Remove the groups of sandboxes whose processes were all killed, and whatever of their programs still runs."""
    for folder in abandoned(own):
        Groups((folder,), version).remove()


def _delegated(folder: Path) -> bool:
    """Whether systemd has delegated a group: it says so in an attribute, and makes an ordinary user its owner."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return os.getuid() != 0 and folder.stat().st_uid == os.getuid() and (folder / "cgroup.procs").exists()


def _vacate(folder: Path) -> None:
    services = folder / _SERVICES
    services.mkdir(exist_ok=True)
    until = time.monotonic() + _VACATE_SECONDS
    while pids := (folder / "cgroup.procs").read_text().split():
        foreign = [pid for pid in pids if os.getuid() not in (0, _owner(pid))]
        if foreign:
            raise OSError(f"{folder} holds processes of other users: {', '.join(foreign[:5])}")
        if time.monotonic() >= until:
            raise OSError(f"processes keep starting in {folder}")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                _write(services / "cgroup.procs", pid)


def _owner(pid: str) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:  # it has ended
        return os.getuid()


def _alone(controller: str) -> bool:
    """Whether a controller of version 1 has a hierarchy to itself."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return controller in [line.split(":", 2)[1] for line in lines]


def _own(kind: str, controller: str) -> Path:
    """The folder of this process's group in the hierarchy of a file system type and controller. Raises OSError."""
    path = ""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, found = line.split(":", 2)
        if controller in controllers.split(","):
            path = found
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, place = (_unescaped(part) for part in before.split()[3:5])
        type_, _, options = after.split(" ", 2)
        if type_ != kind or (controller and controller not in options.split(",")) or not path:
            continue
        inside = os.path.relpath(path, root)
        if not inside.startswith(".."):
            return Path(place) / inside
    raise OSError(f"no hierarchy of {kind} {controller}".strip() + " is mounted")


def _unescaped(text: str) -> str:
    return text.encode().decode("unicode_escape") if "\\" in text else text


def _below(top: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(top):
            if entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _write(path: Path, text: str) -> None:
    # Not created if missing: a control file that is not there is an error.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _write_if_there(path: Path, text: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        _write(path, text)
