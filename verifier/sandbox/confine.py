"""The steps by which a process confines itself between fork and exec.

They run in the child of a single-threaded process (spawner.py), since a process with threads must not run Python
between fork and exec. No step is undone on failure: after an OSError the program is not started.
"""

from __future__ import annotations

import os
import resource
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from verifier.sandbox import kernel, seccomp
from verifier.sandbox.limits import Level, Limits

SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/localtime")
"""Paths that a program needs in order to start; they hold nothing secret and nothing of this service."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
INSIDE = "/tmp/sandbox"
"""Where the directory of the run is mounted under bubblewrap."""
CHANNEL = 3
"""The descriptor of the channel in the program, if the caller asked for one."""
HIGH = 20
"""The first descriptor number for this package's own use; none of these is inherited by the program."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that the caller decides about one run; `user` None keeps the current user (not root, or unsafe)."""

    argv: list[str]
    environment: dict[str, str]
    directory: str
    readable: list[str]
    level: Level
    user: int | None
    limits: Limits
    nonce: str


def confine(plan: Plan, state: int) -> tuple[str, list[str], dict[str, str]]:
    """Confine this process; returns the arguments of the execve that must follow.

    The program's descriptors must be in place already. `state` is the descriptor on which bubblewrap reports that it
    has started the program.
    """
    os.chdir(plan.directory)
    os.umask(0o077)
    if plan.level == "bubblewrap":
        command = _bubblewrap(plan, state)
        _set_limits(plan)
        return command
    _set_limits(plan)
    if plan.user is not None:
        os.setgroups([])
        os.setresgid(plan.user, plan.user, plan.user)
        os.setresuid(plan.user, plan.user, plan.user)
    # Set after the change of user, which would clear it.
    kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if plan.level == "landlock":
        abi = kernel.landlock_abi()
        kernel.restrict_self(abi, [*SYSTEM, *plan.readable, *DEVICES[1:]], [plan.directory, DEVICES[0]])
        # Landlock keeps signals inside from ABI 6 on; before, the filter does, by allowing signals to this pid only.
        forks = plan.limits.processes > 1
        free = forks and abi >= kernel.SCOPED_SIGNALS_ABI
        kernel.install_filter(seccomp.program(own_pid=None if free else os.getpid(), may_fork=forks))
    environment = {**plan.environment, "HOME": plan.directory, "TMPDIR": plan.directory}
    program = shutil.which(plan.argv[0], path=environment["PATH"]) or plan.argv[0]
    return program, plan.argv, environment


def _set_limits(plan: Plan) -> None:
    limits = plan.limits
    seconds = max(1, int(-(-limits.cpu_seconds // 1)))
    # One second between SIGXCPU, which can be told from other signals, and SIGKILL, which cannot be ignored.
    _limit(resource.RLIMIT_CPU, seconds, seconds + 1)
    if limits.address_space:
        _limit(resource.RLIMIT_AS, limits.memory_bytes)
    _limit(resource.RLIMIT_FSIZE, limits.file_bytes)
    _limit(resource.RLIMIT_NOFILE, limits.open_files)
    for none in (resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE, resource.RLIMIT_RTPRIO):
        _limit(none, 0)
    # The kernel counts tasks by user: a user id of the run's own has no others, otherwise the running ones are added.
    others = 0 if plan.user is not None else _tasks_of(os.getuid())
    around = 3 if plan.level == "bubblewrap" else 0
    _limit(resource.RLIMIT_NPROC, others + around + limits.processes + limits.threads)


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


def _bubblewrap(plan: Plan, state: int) -> tuple[str, list[str], dict[str, str]]:
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
    for path in SYSTEM:
        if os.path.islink(path) and stat.S_ISDIR(os.stat(path).st_mode):
            argv += ["--symlink", os.readlink(path), path]
        else:
            argv += [*_folders(path), "--ro-bind-try", path, path]
    for path in plan.readable:
        argv += [*_folders(path), "--ro-bind-try", path, path]
    argv += ["--tmpfs", "/dev"]
    for path in DEVICES:
        argv += ["--dev-bind", path, path]
    argv += [
        *_folders(INSIDE),
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
    code = _in_memory(seccomp.program(own_pid=None, may_fork=plan.limits.processes > 1))
    os.set_inheritable(state, True)  # bubblewrap closes both for the program
    argv += ["--seccomp", str(code), "--json-status-fd", str(state), "--", *inner]
    program = shutil.which("bwrap")
    if program is None:
        raise FileNotFoundError("bwrap is not on PATH; install bubblewrap")
    return program, argv, {"PATH": os.environ.get("PATH", os.defpath)}


def _folders(path: str) -> list[str]:
    """Arguments that make the folders above a path searchable for the program's user; by default bubblewrap makes them
    accessible to its own user only."""
    above = [str(folder) for folder in reversed(Path(path).parents) if str(folder) != "/"]
    return [part for folder in above if folder not in SYSTEM for part in ("--perms", "0755", "--dir", folder)]


def _in_memory(code: bytes) -> int:
    descriptor = os.memfd_create("filter", 0)
    os.write(descriptor, code)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
