"""The kernel's bounds on memory, tasks and disk that are in force, found by trying each in a process that exceeds it.

Memory and tasks: control groups of version 2, of version 1, or of a scope that systemd makes for the spawner. Without
any, each process has limits of its own (RLIMIT_AS, RLIMIT_DATA, RLIMIT_NPROC), and the system call filter refuses
memory that outlives or escapes them. Disk: a tmpfs for each run. Without it, each file is limited (RLIMIT_FSIZE) and
the directory is measured at intervals.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from verifier.sandbox import cgroups, kernel, seccomp
from verifier.sandbox.cgroups import Group, Groups
from verifier.sandbox.limits import Bounds, MemoryBound, MiB
from verifier.sandbox.workspace import BLOCK, Workspace

SCOPED = "scoped"
"""The last argument of a spawner that systemd-run has started."""
_SYSTEMD_RUN = ["systemd-run", "--scope", "--quiet", "--collect", "--property=Delegate=yes"]
_SYSTEMD_SECONDS = 10.0
_TRIAL_MEMORY = 24 * MiB
_TRIAL_SECONDS = 10.0
_TRIAL_FILES = 16
_REFUSED, _NOT_REFUSED, _NO_FILTER = 0, 1, 2


@dataclass(frozen=True, slots=True)
class InForce:
    """What was found: the names of the bounds, and the groups to make runs' groups in (None: there are none)."""

    bounds: Bounds
    groups: Groups | None


def establish(home: str, scoped: bool) -> InForce:
    """The strongest bounds that hold when they are exceeded; may replace this process by the same one in a scope.

    `home`: the sandbox's folder, to try a tmpfs in. `scoped`: systemd-run has started this process.
    """
    why: list[str] = []
    groups = _groups(Path(home).name, why)
    if groups is None and not scoped:
        _enter_scope(why)
    disk = _tried(lambda: _try_tmpfs(home), "tmpfs", why)
    memory: MemoryBound
    if groups is not None:
        memory = "scope" if scoped else "cgroup2" if groups.version == 2 else "cgroup1"
    else:
        memory = "rlimits" if _tried(_try_filter, "rlimits", why) else "none"
    return InForce(Bounds(memory, "tmpfs" if disk else "sampled", tuple(why)), groups)


def _groups(name: str, why: list[str]) -> Groups | None:
    for label, make in (("cgroup2", cgroups.version_2), ("cgroup1", cgroups.version_1)):
        try:
            groups = make(name)
        except OSError as error:
            why.append(f"{label}: {error}")
            continue
        if _tried(lambda groups=groups: _try_group(groups), label, why):  # type: ignore[misc]
            return groups
        groups.remove()
    return None


def _enter_scope(why: list[str]) -> None:
    """Replace this process by itself in a scope of systemd's; returns, with the reason, where that does not work."""
    if not cgroups.SYSTEMD.is_dir() or shutil.which(_SYSTEMD_RUN[0]) is None:
        why.append("scope: systemd is not running here")
        return
    command = [*_SYSTEMD_RUN, *(["--user"] if os.getuid() != 0 else []), "--"]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True, timeout=_SYSTEMD_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", b"") or b""
        why.append(f"scope: {error} {said.decode('utf-8', 'replace')[-200:].strip()}".strip())
        return
    os.execvp(command[0], [*command, *sys.orig_argv, SCOPED])


def _tried(trial: Callable[[], str], label: str, why: list[str]) -> bool:
    """Whether a trial found no fault; otherwise the fault is added to `why`."""
    try:
        fault = trial()
    except OSError as error:
        fault = str(error)
    if fault:
        why.append(f"{label}: {fault}")
    return not fault


# --- trials


def _try_group(groups: Groups) -> str:
    """The fault of the groups: a process that keeps shared memory after unmapping most of it must be killed."""
    group = groups.make(f"trial-{os.getpid()}", _TRIAL_MEMORY, 2)
    try:
        ended = _in_a_child(lambda: _hoard(group))
        if not (os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGKILL):
            return f"a process could take more than {_TRIAL_MEMORY} bytes"
        return "" if group.killed() and group.exhausted() else "the kernel does not report its OOM kills"
    finally:
        group.remove()


def _hoard(group: Group) -> int:
    group.enter()
    held = []
    for _ in range(4 * _TRIAL_MEMORY // MiB):
        part = mmap.mmap(-1, MiB)
        for at in range(0, MiB, BLOCK):
            part[at] = 1
        part.resize(BLOCK)
        held.append(part)
    return 0


def _try_tmpfs(home: str) -> str:
    """The fault of a tmpfs in a mount namespace: a file and a number of files beyond its size must be refused."""
    with tempfile.TemporaryDirectory(dir=home) as directory:
        ended = _in_a_child(lambda: _fill(directory))
    if not os.WIFEXITED(ended) or os.WEXITSTATUS(ended) == 0:
        return "a process could exceed its size"
    code = os.WEXITSTATUS(ended)
    return "" if code == errno.ENOSPC else f"cannot be mounted: {os.strerror(code)}"


def _fill(directory: str) -> int:
    """The number of the error with which files beyond the limit are refused; 0 if they are not."""
    try:
        Workspace(directory, _TRIAL_FILES * BLOCK, None)
    except OSError as error:
        return error.errno or 255
    refused = 0
    for name, size in [("large", 4 * _TRIAL_FILES * BLOCK), *((str(number), 0) for number in range(4 * _TRIAL_FILES))]:
        try:
            with open(f"{directory}/{name}", "wb") as file:
                file.write(bytes(size))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                return error.errno or 255
            refused += 1
    return errno.ENOSPC if refused >= 2 else 0


def _try_filter() -> str:
    """The fault of the filter that replaces control groups: it must refuse memory that no limit of a process counts."""
    ended = _in_a_child(_hoard_unseen)
    code = os.WEXITSTATUS(ended) if os.WIFEXITED(ended) else _NO_FILTER
    return {_REFUSED: "", _NOT_REFUSED: "shared anonymous memory is not refused"}.get(code, "it cannot be installed")


def _hoard_unseen() -> int:
    try:
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        kernel.install_filter(seccomp.program(own_pid=None, may_fork=False, grouped=False, tmpfs=False))
    except (OSError, ValueError):
        return _NO_FILTER
    try:
        mmap.mmap(-1, BLOCK)
    except PermissionError:
        return _REFUSED
    return _NOT_REFUSED


def _in_a_child(body: Callable[[], int]) -> int:
    """The wait status of a child that runs `body` and exits with its result; one that takes too long is killed."""
    child = os.fork()
    if child == 0:
        _exit_with(body)
    handle = os.pidfd_open(child)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        if not poll.poll(_TRIAL_SECONDS * 1000):
            os.kill(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1]
    finally:
        os.close(handle)


def _exit_with(body: Callable[[], int]) -> NoReturn:
    try:
        with contextlib.suppress(Exception):
            os._exit(body())
    finally:
        os._exit(255)
