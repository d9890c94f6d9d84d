"""What a process does to itself, after fork and before exec, so that the program it becomes is confined.

Runs in the child of a single-threaded process (spawner.py): a process with threads must not run Python between fork and
exec. Nothing here is undone; an OSError means that the program does not start.
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
"""What a program needs to start: nothing in it is secret or of this service."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
INSIDE = "/tmp/sandbox"
"""Where bubblewrap shows the directory of the run."""
CHANNEL = 3
"""The descriptor of the channel, where the caller asked for one."""
HIGH = 20
"""Descriptors from here on are this package's own; none is inherited by the program."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One run, as the caller decided it. `user` None: stay who we are (not root, or unsafe)."""

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

    The program's descriptors are in place already; `state` is where bubblewrap says that it has started the program.
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
    # After the change of user, which clears it.
    kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if plan.level == "landlock":
        abi = kernel.landlock_abi()
        kernel.restrict_self(abi, [*SYSTEM, *plan.readable, *DEVICES[1:]], [plan.directory, DEVICES[0]])
        # Landlock's scope keeps signals inside; before it, only a filter that knows the one process can.
        forks = plan.limits.processes > 1
        free = forks and abi >= kernel.SCOPED_SIGNALS_ABI
        kernel.install_filter(seccomp.program(own_pid=None if free else os.getpid(), may_fork=forks))
    environment = {**plan.environment, "HOME": plan.directory, "TMPDIR": plan.directory}
    program = shutil.which(plan.argv[0], path=environment["PATH"]) or plan.argv[0]
    return program, plan.argv, environment


def _set_limits(plan: Plan) -> None:
    limits = plan.limits
    seconds = max(1, int(-(-limits.cpu_seconds // 1)))
    # One second between the signal that can be told from others and the one that cannot be ignored.
    _limit(resource.RLIMIT_CPU, seconds, seconds + 1)
    if limits.address_space:
        _limit(resource.RLIMIT_AS, limits.memory_bytes)
    _limit(resource.RLIMIT_FSIZE, limits.file_bytes)
    _limit(resource.RLIMIT_NOFILE, limits.open_files)
    for none in (resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE, resource.RLIMIT_RTPRIO):
        _limit(none, 0)
    # The kernel counts by user: a user of its own has no other tasks, otherwise those that run already come on top.
    others = 0 if plan.user is not None else _tasks_of(os.getuid())
    around = 3 if plan.level == "bubblewrap" else 0
    _limit(resource.RLIMIT_NPROC, others + around + limits.processes + limits.threads)


def _limit(which: int, soft: int, hard: int | None = None) -> None:
    """Lower both limits; never above the hard one there is."""
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
            except OSError:  # it ended meanwhile
                continue
    return total


def _bubblewrap(plan: Plan, state: int) -> tuple[str, list[str], dict[str, str]]:
    argv = ["bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    inner = list(plan.argv)
    if plan.user is None:
        argv += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    else:
        # As root without a user namespace: bubblewrap reaches what only root can, the program runs as `user`.
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
    """The folders above a path, open to the program's user: bubblewrap would close them to all but its own."""
    above = [str(folder) for folder in reversed(Path(path).parents) if str(folder) != "/"]
    return [part for folder in above if folder not in SYSTEM for part in ("--perms", "0755", "--dir", folder)]


def _in_memory(code: bytes) -> int:
    descriptor = os.memfd_create("filter", 0)
    os.write(descriptor, code)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
