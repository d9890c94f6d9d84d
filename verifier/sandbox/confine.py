"""The steps by which a process confines itself between fork and exec.

They run in the child of a single-threaded process (spawner.py), since a process with threads must not run Python
between fork and exec. No step is undone on failure: after an OSError the program is not started.
"""

from __future__ import annotations

import os
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

from verifier.sandbox import kernel, seccomp
from verifier.sandbox.limits import GROUPED, Bounds, Level, Limits

DEVICES = ("/dev/null", "/dev/random", "/dev/urandom")
_ZERO = "/dev/zero"
"""Given only in a control group: a shared mapping of it is shared anonymous memory, which nothing else counts."""
INSIDE = "/tmp/sandbox"
"""Where the directory of the run is mounted under bubblewrap."""
CHANNEL = 3
"""The descriptor of the channel in the program, if the caller asked for one."""
_MAPPED_NOT_USED = 4
"""Without a control group and a limit on address space: private writable memory per process, in `memory_bytes`."""
_PAGE_OF_TABLE = 512
"""Pages of memory that one page of page tables maps. In the same case the address space is this many times
`memory_bytes`: reading pages that were never written takes page tables, and nothing that counts as used."""
_SIGNALS = 256
"""Signals that may be queued; each takes kernel memory."""
HIGH = 20
"""The first descriptor number for this package's own use; none of these is inherited by the program."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that the caller decides about one run; `user` None keeps the current user (not root, or unsafe).

    `readable`: real paths of files and directory trees, all that the program can read besides its directory. `links`:
    the symbolic links (path, target) through which it reaches them.
    """

    argv: list[str]
    environment: dict[str, str]
    directory: str
    readable: list[str]
    links: list[tuple[str, str]]
    level: Level
    user: int | None
    limits: Limits
    nonce: str


def confine(plan: Plan, state: int, bounds: Bounds) -> tuple[str, list[str], dict[str, str]]:
    """Confine this process; returns the arguments of the execve that must follow.

    The program's descriptors must be in place already, and the process in its control group if there is one. `state` is
    the descriptor on which bubblewrap reports that it has started the program.
    """
    grouped, tmpfs = bounds.memory in GROUPED, bounds.disk == "tmpfs"
    os.chdir(plan.directory)
    os.umask(0o077)
    if plan.level == "bubblewrap":
        command = _bubblewrap(plan, state, grouped, tmpfs)
        _set_limits(plan, grouped, tmpfs)
        return command
    _set_limits(plan, grouped, tmpfs)
    if plan.user is not None:
        os.setgroups([])
        os.setresgid(plan.user, plan.user, plan.user)
        os.setresuid(plan.user, plan.user, plan.user)
    # Set after the change of user, which would clear it.
    kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if plan.level == "landlock":
        abi = kernel.landlock_abi()
        devices = [*DEVICES[1:], *([_ZERO] if grouped else [])]
        kernel.restrict_self(abi, [*plan.readable, *devices], [plan.directory, DEVICES[0]])
        # Landlock keeps signals inside from ABI 6 on; before, the filter does, by allowing signals to this pid only.
        forks = plan.limits.processes > 1
        free = forks and abi >= kernel.SCOPED_SIGNALS_ABI
        own = None if free else os.getpid()
        kernel.install_filter(seccomp.program(own_pid=own, may_fork=forks, grouped=grouped, tmpfs=tmpfs))
    environment = {**plan.environment, "HOME": plan.directory, "TMPDIR": plan.directory}
    program = shutil.which(plan.argv[0], path=environment["PATH"]) or plan.argv[0]
    return program, plan.argv, environment


def tasks(plan: Plan) -> int:
    """The number of tasks that a run may have, bubblewrap's own included."""
    return (3 if plan.level == "bubblewrap" else 0) + plan.limits.processes + plan.limits.threads


def _set_limits(plan: Plan, grouped: bool, tmpfs: bool) -> None:
    limits = plan.limits
    seconds = max(1, int(-(-limits.cpu_seconds // 1)))
    # One second between SIGXCPU, which can be told from other signals, and SIGKILL, which cannot be ignored.
    _limit(resource.RLIMIT_CPU, seconds, seconds + 1)
    if limits.address_space:
        _limit(resource.RLIMIT_AS, limits.memory_bytes)
    elif not grouped:
        _limit(resource.RLIMIT_DATA, _MAPPED_NOT_USED * limits.memory_bytes)
        _limit(resource.RLIMIT_AS, _PAGE_OF_TABLE * limits.memory_bytes)
    _limit(resource.RLIMIT_FSIZE, limits.file_bytes)
    _limit(resource.RLIMIT_NOFILE, limits.open_files)
    for none in (resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE, resource.RLIMIT_RTPRIO):
        _limit(none, 0)
    _limit(resource.RLIMIT_SIGPENDING, _SIGNALS)
    # The kernel counts tasks by user: a user id of the run's own has no others; in the user namespace of the run's
    # tmpfs there is the supervisor; otherwise all that are running are added.
    if plan.user is not None:
        others = 0
    elif tmpfs and os.getuid() != 0 and kernel.counts_tasks_by_namespace():
        others = 1
    else:
        others = _tasks_of(os.getuid())
    _limit(resource.RLIMIT_NPROC, others + tasks(plan))


def _limit(which: int, soft: int, hard: int | None = None) -> None:
    """Set both limits, neither above the current hard limit."""
    _, most = resource.getrlimit(which)
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard if hard is not None else soft, most)
    resource.setrlimit(which, (soft, hard if hard is not None else soft))


def _tasks_of(user: int) -> int:
    total = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                if entry.stat().st_uid == user:
                    total += os.stat(f"/proc/{entry.name}/task").st_nlink - 2
            except OSError:  # the process has ended
                continue
    return total


def _bubblewrap(plan: Plan, state: int, grouped: bool, tmpfs: bool) -> tuple[str, list[str], dict[str, str]]:
    argv = ["bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    inner = list(plan.argv)
    if plan.user is None:
        argv += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    else:
        # As root, without a user namespace: bubblewrap can reach what only root can, and the program runs as `user`.
        argv += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        who = str(plan.user)
        inner = ["setpriv", "--reuid", who, "--regid", who, "--clear-groups", "--inh-caps=-all", "--", *inner]
    argv += ["--die-with-parent", "--new-session", "--clearenv"]
    argv += _mounts(plan)
    argv += ["--tmpfs", "/dev"]
    for path in (*DEVICES, *([_ZERO] if grouped else [])):
        argv += ["--dev-bind", path, path]
    argv += [
        *("--perms", "0755", "--dir", os.path.dirname(INSIDE)),
        "--bind",
        plan.directory,
        INSIDE,
        "--remount-ro",
        "/dev",
        "--remount-ro",
        "/",
        "--chdir",
        INSIDE,
    ]
    for name, value in {**plan.environment, "HOME": INSIDE, "TMPDIR": INSIDE}.items():
        argv += ["--setenv", name, value]
    forks = plan.limits.processes > 1
    code = _in_memory(seccomp.program(own_pid=None, may_fork=forks, grouped=grouped, tmpfs=tmpfs))
    os.set_inheritable(state, True)  # bubblewrap closes both for the program
    argv += ["--seccomp", str(code), "--json-status-fd", str(state), "--", *inner]
    program = shutil.which("bwrap")
    if program is None:
        raise FileNotFoundError("bwrap is not on PATH; install bubblewrap")
    return program, argv, {"PATH": os.environ.get("PATH", os.defpath)}


def _mounts(plan: Plan) -> list[str]:
    """Arguments that mount what is readable, after the folders above it and the links to it."""
    wanted = [*plan.readable, *(path for path, _ in plan.links)]
    above = sorted({str(folder) for path in wanted for folder in Path(path).parents if str(folder) != "/"})
    links = dict(plan.links)
    # Searchable for the program's user; by default bubblewrap makes folders accessible to its own user only.
    argv = [part for folder in above if folder not in links for part in ("--perms", "0755", "--dir", folder)]
    for path, target in plan.links:
        argv += ["--symlink", target, path]
    for path in plan.readable:
        argv += ["--ro-bind", path, path]
    return argv


def _in_memory(code: bytes) -> int:
    descriptor = os.memfd_create("filter", 0)
    os.write(descriptor, code)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
