"""The supervisor of one run: it starts the program, watches its limits, ends everything it left behind, and reports.

Each run has its own supervisor process. It is a child subreaper and so adopts what its program leaves behind: a double
fork or a new session does not escape it, and it reports only when nothing is left. When the control socket closes it
ends the run, so a killed service leaves nothing behind either. The control socket never reaches the program, and the
report carries the nonce of the plan.

The kernel bounds what a run uses: its control group and its tmpfs, where they can be made (bounds.py). What is looked
at here at intervals is a second line, and names the limit that ended a run. Causes come from the run's own group and
wait status.
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
from verifier.sandbox.bounds import InForce
from verifier.sandbox.cgroups import Group
from verifier.sandbox.confine import HIGH, Plan, confine, tasks
from verifier.sandbox.folders import exceeds
from verifier.sandbox.limits import STRETCH, Bounds, Ended, MiB
from verifier.sandbox.process_table import Usage, below, killed_by_the_machine
from verifier.sandbox.workspace import Workspace

WATCH_SECONDS = 0.05
"""Interval between checks of memory and disk; the first check comes after this long, so short runs cost nothing."""
CALM_SECONDS = 0.25
"""The longest interval between checks where the kernel itself limits memory."""
_AROUND_BYTES = 8 * MiB
"""Memory of bubblewrap, page tables and pipes, allowed to a control group besides the limits of its run."""
_KILL_SECONDS = 10.0
_MOMENT_SECONDS = 0.01


def supervise(plan: Plan, descriptors: list[int], found: InForce) -> NoReturn:
    """Run a plan to its end, report and exit; `descriptors`: control, stdin, stdout, stderr, perhaps the channel."""
    control, *inner = descriptors
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    try:
        group, workspace = _prepare(plan, found)
    except OSError as error:
        _report(plan, control, {"trouble": f"{type(error).__name__}: {error}"})
    said, saying = os.pipe()
    status, state = os.pipe()
    killed_before = killed_by_the_machine()
    used = Usage(time.monotonic())
    child = os.fork()
    if child == 0:
        _become(plan, inner, saying, state, found.bounds, group)
    for one in (saying, state, *inner):
        os.close(one)
    with os.fdopen(said, "rb") as pipe:
        trouble = pipe.read().decode("utf-8", "replace")  # empty: the program or bubblewrap has been started
    ended = "exit" if trouble else _watch(plan, control, child, used, group, workspace)
    if ended in ("exit", "stopped") and workspace and workspace.exceeded():
        ended = "disk"  # the kernel refused more before anybody looked
    if ended != "exit":
        os.kill(child, signal.SIGKILL)  # not waited for yet, so its pid cannot have been reused
    _, exit_status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - used.begun
    code = os.waitstatus_to_exitcode(exit_status)
    if plan.level == "bubblewrap":
        if code > 128:
            code = 128 - code  # bubblewrap's exit code for a program ended by a signal
        if ended == "exit" and not trouble and not (group and group.killed()) and b"exit-code" not in _drain(status):
            trouble = f"bubblewrap could not start the program (exit code {code})"
    if not _end_what_is_left(plan, group):
        trouble = f"processes that the program started could not be ended within {_KILL_SECONDS:g} s"
    report = {
        "trouble": trouble,
        "ended": ended,
        "code": code,
        "seconds": seconds,
        "cpu": max(used.cpu, usage.ru_utime + usage.ru_stime),
        "peak": max(used.peak, usage.ru_maxrss * 1024),
        "starved": used.starved,
        "machine_killed": killed_by_the_machine() != killed_before,
        "group_killed": group.killed() if group else None,
        "exhausted": group.exhausted() if group else False,
    }
    if group:
        group.remove()
    _report(plan, control, report)


def _prepare(plan: Plan, found: InForce) -> tuple[Group | None, Workspace | None]:
    """The run's control group and tmpfs, where this machine has them. Raises OSError."""
    limits = plan.limits
    group = workspace = None
    if found.groups is not None:
        disk = limits.disk_bytes if found.bounds.disk == "tmpfs" else 0
        group = found.groups.make(plan.nonce, limits.memory_bytes + disk + _AROUND_BYTES, tasks(plan))
    if found.bounds.disk == "tmpfs":
        workspace = Workspace(plan.directory, limits.disk_bytes, plan.user)
    return group, workspace


def _report(plan: Plan, control: int, report: dict[str, object]) -> NoReturn:
    with contextlib.suppress(OSError):  # the service has ended
        os.write(control, json.dumps({"nonce": plan.nonce, **report}).encode() + b"\n")
    os._exit(0)


def _become(plan: Plan, inner: list[int], saying: int, state: int, bounds: Bounds, group: Group | None) -> NoReturn:
    """Move the descriptors to their places (0, 1, 2, CHANNEL), close all others, confine this process and exec."""
    # First duplicate everything above those places, so that filling one overwrites none that is still needed.
    told, state, *high = (fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, HIGH) for one in (saying, state, *inner))
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        for place, one in enumerate(high):
            os.dup2(one, place, inheritable=True)
        os.closerange(len(high), min(told, state))
        os.closerange(max(told, state) + 1, 1 << 20)
        if group is not None:
            group.enter()
        program, argv, environment = confine(plan, state, bounds)
        os.execve(program, argv, environment)
    except (OSError, ValueError) as error:
        os.write(told, f"{type(error).__name__}: {error}".encode()[:1000])
    finally:
        os._exit(127)


def _watch(
    plan: Plan, control: int, child: int, used: Usage, group: Group | None, workspace: Workspace | None
) -> Ended:
    """Wait until the program ends, is stopped or passes a limit; meanwhile, answer the caller's questions."""
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
        interval = min(1.3 * interval, CALM_SECONDS if group or limits.address_space else WATCH_SECONDS)
        if handle in ready:
            return "exit"
        asked = control in ready
        if asked and not os.read(control, 1):
            return "stopped"
        used.look(group.cpu_seconds() if group else 0.0)
        if asked:
            os.write(control, json.dumps({"starved": used.starved}).encode() + b"\n")
        now = time.monotonic() - used.begun
        if now >= STRETCH * limits.wall_seconds and now < limits.wall_seconds + used.starved:
            return "starved"
        if now >= limits.wall_seconds + used.starved:
            return "wall"
        if used.resident > limits.memory_bytes or (group and group.killed() and group.exhausted()):
            return "memory"
        if workspace.exceeded() if workspace else exceeds(plan.directory, limits.disk_bytes, used.removed):
            return "disk"


def _end_what_is_left(plan: Plan, group: Group | None) -> bool:
    """Kill and reap until this process, a subreaper, has no descendants; False if some outlive _KILL_SECONDS."""
    begun = time.monotonic()
    while (taken := time.monotonic() - begun) < _KILL_SECONDS:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                # What bubblewrap started ends with it in a moment; searching all processes would take longer.
                if plan.level != "bubblewrap" or taken > _MOMENT_SECONDS:
                    _kill(plan, group)
                time.sleep(0.0005)
        except ChildProcessError:
            return True
    return False


def _kill(plan: Plan, group: Group | None) -> None:
    if group is not None:
        group.kill()
        return
    if plan.level == "landlock" and plan.user is not None:
        # One call kills all processes of the user, who is this run's alone, so that a fork bomb cannot outrun it.
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
