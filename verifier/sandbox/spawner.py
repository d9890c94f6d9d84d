"""The process that starts confined programs and ends whatever they leave: single-threaded, without secrets, stdlib only.

    service ── one message a run (plan + descriptors) ──▶ spawner ── fork ──▶ supervisor ── fork ──▶ the program
       ▲                                                                           │
       └───────────── control: the report, once; its closing ends the run ─────────┘

A supervisor adopts everything its program leaves behind (child subreaper), so nothing escapes by a double fork or a new
session, and it reports only when nothing is left. It ends the run when the service closes the control socket, so a
killed service leaves nothing either. The control socket never reaches the program, and the report carries the nonce of
its plan. Knows nothing about verdicts. Started by sandbox.py with an empty environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import time
from typing import Any, NoReturn

from verifier.sandbox import kernel
from verifier.sandbox.confine import HIGH, Plan, confine
from verifier.sandbox.limits import Ended, Limits

WATCH_SECONDS = 0.05
"""How often memory and disk are looked at; the first look is after this long, so short runs pay nothing."""
MESSAGE_BYTES = 1 << 17
_KILL_SECONDS = 10.0
_PAGE = os.sysconf("SC_PAGE_SIZE")


def main(descriptor: int) -> None:
    """Serve until the service's end of the socket is closed."""
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service, which then closes its end
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are reaped by the kernel
    requests = socket.socket(fileno=descriptor)
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, MESSAGE_BYTES, 8)
        if not message:
            return
        if os.fork() == 0:
            requests.close()
            try:
                _supervise(plan_of(json.loads(message)), descriptors)
            finally:  # never back into the loop, whatever happened
                os._exit(1)
        for one in descriptors:
            os.close(one)


def plan_of(fields: dict[str, Any]) -> Plan:
    """The plan as it travelled."""
    return Plan(**{**fields, "limits": Limits(**fields["limits"])})


def _supervise(plan: Plan, descriptors: list[int]) -> NoReturn:
    """`descriptors`: control, stdin, stdout, stderr, and the channel if there is one."""
    control, *inner = descriptors
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    said, saying = os.pipe()
    status, state = os.pipe()
    killed_before = _killed_by_the_machine()
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(plan, inner, saying, state)
    for one in (saying, state, *inner):
        os.close(one)
    with os.fdopen(said, "rb") as pipe:
        trouble = pipe.read().decode("utf-8", "replace")  # empty: the program, or bubblewrap, has been started
    ended, starved = ("exit", 0.0) if trouble else _watch(plan, control, child, begun)
    if ended != "exit":
        _kill(plan)
    _, exit_status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - begun
    code = os.waitstatus_to_exitcode(exit_status)
    if plan.level == "bubblewrap":
        if code > 128:
            code = 128 - code  # its way to say that a signal ended the program
        if ended == "exit" and not trouble and b"exit-code" not in _drain(status):
            trouble = f"bubblewrap could not start the program (exit code {code})"
    if not _end_what_is_left(plan):
        trouble = f"what the program started could not be ended within {_KILL_SECONDS:g} s"
    report = {
        "nonce": plan.nonce,
        "trouble": trouble,
        "ended": ended,
        "code": code,
        "seconds": seconds,
        "cpu": usage.ru_utime + usage.ru_stime,
        "peak": usage.ru_maxrss * 1024,
        "starved": starved,
        "machine_killed": _killed_by_the_machine() != killed_before,
    }
    with contextlib.suppress(OSError):  # the service is gone: there is nobody to tell
        os.write(control, json.dumps(report).encode())
    os._exit(0)


def _become(plan: Plan, inner: list[int], saying: int, state: int) -> NoReturn:
    """Put the descriptors in their places (0, 1, 2, CHANNEL), close all others, confine, exec."""
    # First everything out of the way of the places, so that filling one overwrites none still needed.
    told, state, *high = (fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, HIGH) for one in (saying, state, *inner))
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        for place, one in enumerate(high):
            os.dup2(one, place, inheritable=True)
        os.closerange(len(high), min(told, state))
        os.closerange(max(told, state) + 1, 1 << 20)
        program, argv, environment = confine(plan, state)
        os.execve(program, argv, environment)
    except (OSError, ValueError) as error:
        os.write(told, f"{type(error).__name__}: {error}".encode()[:1000])
    finally:
        os._exit(127)


def _watch(plan: Plan, control: int, child: int, begun: float) -> tuple[Ended, float]:
    """Wait for the end of the program, of the caller's patience, or of a limit; with the seconds it was starved."""
    limits = plan.limits
    poll = select.poll()
    handle = os.pidfd_open(child)
    poll.register(handle, select.POLLIN)
    poll.register(control, select.POLLIN | select.POLLHUP)
    starved = 0.0
    while True:
        left = limits.wall_seconds - (time.monotonic() - begun)
        ready = {descriptor for descriptor, _ in poll.poll(max(0.0, min(WATCH_SECONDS, left)) * 1000)}
        if handle in ready:
            return "exit", starved
        if control in ready:
            return "stopped", starved
        tree = _descendants()
        starved = max(starved, sum(_waited(pid) for pid in tree))
        if time.monotonic() - begun >= limits.wall_seconds:
            return "wall", starved
        if sum(_resident(pid) for pid in tree) > limits.memory_bytes:
            return "memory", starved
        if _size(plan.directory) > limits.disk_bytes:
            return "disk", starved


def _end_what_is_left(plan: Plan) -> bool:
    """Kill and reap until this process has no children (as subreaper: no descendants); False if some will not die."""
    until = time.monotonic() + _KILL_SECONDS
    while time.monotonic() < until:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                _kill(plan)
                time.sleep(0.002)
        except ChildProcessError:
            return True
    return False


def _kill(plan: Plan) -> None:
    if plan.level == "landlock" and plan.user is not None:
        # In one call, so that a fork bomb cannot stay ahead: the user is this run's alone.
        helper = os.fork()
        if helper == 0:
            try:
                os.setresuid(plan.user, plan.user, plan.user)
                os.kill(-1, signal.SIGKILL)
            finally:
                os._exit(0)
        os.waitpid(helper, 0)
    for pid in _descendants():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _descendants() -> list[int]:
    """Everything below this process, in whatever session or namespace (seen from here, by the pid seen from here)."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            fields = _read(f"/proc/{entry}/stat").rpartition(b")")[2].split()
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry))
    found: list[int] = []
    level = [os.getpid()]
    while level:
        level = [child for parent in level for child in children.get(parent, ())]
        found += level
    return found


def _resident(pid: int) -> int:
    fields = _read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * _PAGE if fields else 0


def _waited(pid: int) -> float:
    """Seconds that a process stood in the run queue; 0 where the kernel does not count them."""
    fields = _read(f"/proc/{pid}/schedstat").split()
    return int(fields[1]) / 1e9 if fields else 0.0


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(4096) or b""
    except OSError:  # the process ended between two looks
        return b""


def _size(directory: str) -> int:
    """Bytes of the files below a directory the program may be changing; each entry costs at least a block."""
    total = 0
    for _, folders, files, descriptor in os.fwalk(directory, onerror=None):
        for name in (*folders, *files):
            try:
                found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            except OSError:  # removed between two looks
                continue
            total += max(_PAGE, found.st_blocks * 512)
    return total


def _drain(descriptor: int) -> bytes:
    os.set_blocking(descriptor, False)
    try:
        return os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return b""


def _killed_by_the_machine() -> int:
    """How many processes the kernel has killed for want of memory since it started; 0 where it does not say."""
    for line in _read_all("/proc/vmstat").splitlines():
        if line.startswith(b"oom_kill "):
            return int(line.split()[1])
    return 0


def _read_all(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
