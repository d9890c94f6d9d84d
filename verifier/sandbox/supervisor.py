"""One run: start the program, watch it, end everything it left, report. A process of its own for each run.

It adopts what its program leaves behind (child subreaper), so a double fork or a new session escapes nothing, and it
reports only when nothing is left. When the control socket closes it ends the run, so a killed service leaves nothing
either. The control socket never reaches the program, and the report carries the nonce of its plan.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import time
from typing import NoReturn

from verifier.sandbox import kernel
from verifier.sandbox.confine import HIGH, Plan, confine
from verifier.sandbox.folders import exceeds
from verifier.sandbox.limits import STRETCH, Ended
from verifier.sandbox.process_table import Usage, below, killed_by_the_machine

WATCH_SECONDS = 0.05
"""How often memory and disk are looked at; the first look is after this long, so short runs pay nothing."""
CALM_SECONDS = 0.25
"""How seldom the looks become where the kernel itself refuses memory (Limits.address_space)."""
_KILL_SECONDS = 10.0
_MOMENT_SECONDS = 0.01


def supervise(plan: Plan, descriptors: list[int]) -> NoReturn:
    """`descriptors`: control, stdin, stdout, stderr, and the channel if there is one."""
    control, *inner = descriptors
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    said, saying = os.pipe()
    status, state = os.pipe()
    killed_before = killed_by_the_machine()
    used = Usage(time.monotonic())
    child = os.fork()
    if child == 0:
        _become(plan, inner, saying, state)
    for one in (saying, state, *inner):
        os.close(one)
    with os.fdopen(said, "rb") as pipe:
        trouble = pipe.read().decode("utf-8", "replace")  # empty: the program, or bubblewrap, has been started
    ended = "exit" if trouble else _watch(plan, control, child, used)
    if ended != "exit":
        os.kill(child, signal.SIGKILL)  # not waited for yet, so nobody else can have its number
    _, exit_status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - used.begun
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
        "cpu": max(used.cpu, usage.ru_utime + usage.ru_stime),
        "peak": max(used.peak, usage.ru_maxrss * 1024),
        "starved": used.starved,
        "machine_killed": killed_by_the_machine() != killed_before,
    }
    with contextlib.suppress(OSError):  # the service is gone: there is nobody to tell
        os.write(control, json.dumps(report).encode() + b"\n")
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


def _watch(plan: Plan, control: int, child: int, used: Usage) -> Ended:
    """Wait for the end of the program, of the caller's patience, or of a limit; answer what the caller asks."""
    limits = plan.limits
    poll = select.poll()
    handle = os.pidfd_open(child)
    poll.register(handle, select.POLLIN)
    poll.register(control, select.POLLIN | select.POLLHUP)
    interval = WATCH_SECONDS
    while True:
        now = time.monotonic() - used.begun
        left = limits.wall_seconds + used.starved - now
        ready = {descriptor for descriptor, _ in poll.poll(max(0.0, min(interval, left)) * 1000 + 1)}
        interval = min(1.3 * interval, CALM_SECONDS if limits.address_space else WATCH_SECONDS)
        if handle in ready:
            return "exit"
        asked = control in ready
        if asked and not os.read(control, 1):
            return "stopped"
        used.look()
        if asked:
            os.write(control, json.dumps({"starved": used.starved}).encode() + b"\n")
        now = time.monotonic() - used.begun
        if now >= STRETCH * limits.wall_seconds and now < limits.wall_seconds + used.starved:
            return "starved"
        if now >= limits.wall_seconds + used.starved:
            return "wall"
        if used.resident > limits.memory_bytes:
            return "memory"
        if exceeds(plan.directory, limits.disk_bytes, used.removed):
            return "disk"


def _end_what_is_left(plan: Plan) -> bool:
    """Kill and reap until this process has no children (as subreaper: no descendants); False if some will not die."""
    begun = time.monotonic()
    while (taken := time.monotonic() - begun) < _KILL_SECONDS:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                # What bubblewrap started ends with it in a moment; looking through all processes takes longer.
                if plan.level != "bubblewrap" or taken > _MOMENT_SECONDS:
                    _kill(plan)
                time.sleep(0.0005)
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
    for pid in below():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _drain(descriptor: int) -> bytes:
    os.set_blocking(descriptor, False)
    try:
        return os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return b""
