"""Attacks on the bounds of a sandbox: programs that take what nobody counts, and what must become of each.

Standard library only, since it also runs as an ordinary user: `python attacks.py LEVEL` runs every attack and prints
one line for each; `python attacks.py landlock pod` does so under a filter like a container runtime's, which forbids
mounts and namespaces.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))

from verifier.sandbox import kernel, levels
from verifier.sandbox.limits import GROUPED, Limits, MiB, Outcome
from verifier.sandbox.sandbox import Sandbox

PYTHON = "/usr/bin/python3"
MEMORY = Limits(memory_bytes=64 * MiB, disk_bytes=4 * MiB, file_bytes=64 * MiB, wall_seconds=60, cpu_seconds=20)
UNMAPPED = """
held = []
try:
    for _ in range(160):
        part = mmap.mmap(-1, 1 << 20)
        part[::4096] = bytes(256)
        part.resize(4096)
        held.append(part)
finally:
    print(len(held), flush=True)
"""
ZERO = """
held = []
file = os.open("/dev/zero", os.O_RDWR if os.access("/dev/zero", os.W_OK) else os.O_RDONLY)
for _ in range(160):
    part = mmap.mmap(file, 1 << 20, prot=mmap.PROT_READ)
    sum(part[::4096])
    held.append(part)
    part.resize(4096)
print(len(held), flush=True)
"""
UNLINKED = """
held = []
try:
    for _ in range(64):
        file = os.open("f", os.O_RDWR | os.O_CREAT)
        os.pwrite(file, bytes(1 << 20), 0)
        held.append(mmap.mmap(file, 1 << 20))
        os.close(file)
        os.unlink("f")
finally:
    print(len(held), flush=True)
"""
ALLOCATED = """
made = 0
try:
    for number in range(64):
        file = os.open(f"f{number}", os.O_RDWR | os.O_CREAT)
        os.posix_fallocate(file, 0, 1 << 20)
        made += 1
finally:
    print(made, flush=True)
"""
EMPTY = """
made = 0
try:
    for number in range(100_000):
        os.close(os.open(f"f{number}", os.O_WRONLY | os.O_CREAT))
        made += 1
finally:
    print(made, flush=True)
"""
SPUN = """
import resource
resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
while True: pass
"""
FORKED = """
child = os.fork()
if child == 0:
    held = bytearray(200 << 20)
    os._exit(0)
os.waitpid(child, 0)
"""
UNSEEN = """
import signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(4):
    child = os.fork()
    if child == 0:
        while time.process_time() < 0.15: pass
        os._exit(0)
    try:
        os.waitpid(child, 0)
    except ChildProcessError:  # it has ended, and what it used is told to nobody
        pass
time.sleep(0.3)
"""
CALLS = """
import ctypes, platform
call = ctypes.CDLL(None, use_errno=True).syscall
arm = platform.machine() == "aarch64"
room = ctypes.create_string_buffer(256)
for name, (intel, own), arguments in (
    ("io_setup", (206, 0), (1, room)), ("timer_create", (222, 107), (0, None, room)), ("sync", (162, 81), ()),
    ("syncfs", (306, 267), (0,)), ("inotify_init1", (294, 26), (0,)), ("memfd_create", (319, 279), (b"x", 0)),
    ("fcntl F_SETSIG", (72, 25), (0, 10, 9)), ("fcntl F_NOTIFY", (72, 25), (0, 1026, 1)),
    ("mmap MAP_HUGETLB", (9, 222), (None, ctypes.c_size_t(2 << 20), 3, 0x40022, -1, ctypes.c_size_t(0))),
    ("shmget", (29, 194), (0, 4096, 0o1600)), ("io_uring_setup", (425, 425), (1, room)),
    ("landlock_create_ruleset", (444, 444), (None, 0, 1)), ("seccomp", (317, 277), (2, 0, None)),
    ("prctl PR_SET_SECCOMP", (157, 167), (22, 0, 0, 0, 0)),
    *((f"fcntl {lock}", (72, 25), (0, lock, room)) for lock in (6, 7, 37, 38)),
):
    if call(own if arm else intel, *arguments) != -1 or ctypes.get_errno() != 1:
        print(name, "is not refused:", ctypes.get_errno())
"""
TABLES = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
size, private, without_reserve = 40 << 30, 0x22, 0x4000
start = libc.mmap(None, size, mmap.PROT_READ, private | without_reserve, -1, 0)
if start == ctypes.c_void_p(-1).value:
    sys.exit("refused")
for at in range(0, size, 2 << 20):
    ctypes.c_char.from_address(start + at).value
"""
SEEN = """
for path in (
    "/usr/src", "/usr/share/doc", "/usr/include", "/usr/games", "/usr/local/share", "/usr/local/src", "/opt", "/srv",
    "/home", "/root", "/var", "/run", "/boot", "/sys", "/etc/passwd", "/etc/hostname", "/proc/1", sys.argv[1],
):
    try:
        found = os.listdir(path) if os.path.isdir(path) else open(path, "rb").read()
    except OSError:
        continue
    print(path, "can be read:", str(found)[:100])
"""


def run(sandbox: Sandbox, program: str, *arguments: str, limits: Limits = MEMORY) -> Outcome:
    """The outcome of a Python program."""
    return sandbox.run([PYTHON, "-I", "-S", "-c", f"import mmap, os, sys\n{program}", *arguments], limits=limits)


def number(outcome: Outcome) -> int:
    """What the program printed; 0 if it was ended before."""
    return int(outcome.stdout or b"0")


def unmapped(sandbox: Sandbox) -> None:
    """Shared memory that is resized to a page stays allocated."""
    outcome = run(sandbox, UNMAPPED)
    if sandbox.bounds.memory in GROUPED:
        assert outcome.ended == "memory", outcome
    else:
        assert number(outcome) == 0 and b"PermissionError" in outcome.stderr, outcome


def device(sandbox: Sandbox) -> None:
    """A shared mapping of /dev/zero is shared memory."""
    outcome = run(sandbox, ZERO)
    assert number(outcome) == 0, outcome


def unlinked(sandbox: Sandbox) -> None:
    """A file that was removed stays as long as it is mapped."""
    if sandbox.bounds.disk == "tmpfs":
        assert number(run(sandbox, UNLINKED)) <= 4


def allocated(sandbox: Sandbox) -> None:
    """fallocate takes space faster than anybody looks."""
    assert number(run(sandbox, ALLOCATED)) <= (4 if sandbox.bounds.disk == "tmpfs" else 40)


def empty(sandbox: Sandbox) -> None:
    """Files without content take memory of the kernel."""
    if sandbox.bounds.disk == "tmpfs":
        assert number(run(sandbox, EMPTY)) <= 4 * MiB // 4096 + 2


def disguised(sandbox: Sandbox) -> None:
    """Whatever a program does to itself is its own end, also while the machine's OOM killer is at work elsewhere."""
    stop = threading.Event()

    def elsewhere() -> None:
        while not stop.is_set():
            run(sandbox, UNMAPPED)

    other = threading.Thread(target=elsewhere)
    other.start()
    try:
        for program, ends in (
            ("os._exit(137)", {("signal", 9), ("exit", 137), ("signal", 11)}),
            ("os.kill(os.getpid(), 9)", {("signal", 9), ("exit", 1)}),
            (SPUN, {("signal", 9), ("cpu", 0), ("exit", 1)}),
        ):
            outcome = run(sandbox, program)  # SandboxTrouble would be judged `error`
            assert (outcome.ended, outcome.code) in ends, (program, outcome)
    finally:
        stop.set()
        other.join()


def forked(sandbox: Sandbox) -> None:
    """A child that is killed for its memory ends the run, though its parent goes on."""
    limits = Limits(memory_bytes=64 * MiB, disk_bytes=MiB, address_space=False, processes=3, wall_seconds=60)
    if sandbox.bounds.memory in GROUPED:
        outcome = run(sandbox, FORKED, limits=limits)
        assert outcome.ended == "memory", outcome


def unseen(sandbox: Sandbox) -> None:
    """CPU time of children that are not waited for counts: what is not counted passes for time without a core."""
    limits = Limits(memory_bytes=256 * MiB, address_space=False, processes=3, wall_seconds=60)
    outcome = run(sandbox, UNSEEN, limits=limits)
    assert outcome.code == 0 and outcome.cpu_seconds > 0.3, outcome


def tables(sandbox: Sandbox) -> None:
    """Pages that are only read take page tables: 80 MiB of them here, where 64 MiB is the limit."""
    limits = Limits(memory_bytes=64 * MiB, disk_bytes=MiB, address_space=False, wall_seconds=60)
    outcome = run(sandbox, TABLES, limits=limits)
    if sandbox.bounds.memory in GROUPED:
        assert outcome.ended == "memory", outcome
    else:
        assert (outcome.code, outcome.stderr.strip()) == (1, b"refused"), outcome


def calls(sandbox: Sandbox) -> None:
    """Calls that concern the whole machine, or memory that no limit counts, are refused."""
    outcome = run(sandbox, CALLS)
    assert (outcome.stdout, outcome.code) == (b"", 0), outcome


def seen(sandbox: Sandbox) -> None:
    """Only programs, libraries and what is named can be read."""
    outcome = run(sandbox, SEEN, str(Path(__file__).resolve()))
    assert (outcome.stdout, outcome.code) == (b"", 0), outcome


ATTACKS: tuple[Callable[[Sandbox], None], ...] = (
    unmapped,
    device,
    unlinked,
    allocated,
    empty,
    disguised,
    forked,
    unseen,
    tables,
    calls,
    seen,
)


def become_a_pod() -> None:
    """Refuse unshare, mount and clone into namespaces to this process, as a container runtime does (x86-64)."""
    refuse, allow = (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)
    steps = [(0x20, 0, 0, 0)]
    for call in (272, 165, 155, 161, 308):
        steps += [(0x15, 0, 1, call), refuse]
    steps += [(0x15, 0, 1, 435), (6, 0, 0, 0x50026)]
    steps += [(0x15, 0, 3, 56), (0x20, 0, 0, 16), (0x45, 0, 1, 0x7E020000), refuse, allow]
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.install_filter(b"".join(struct.pack("=HBBI", *step) for step in steps))


def main(level: str, *pod: str) -> None:
    """Run all attacks at a level; an attack that succeeds raises AssertionError."""
    if pod:
        become_a_pod()
    with levels.open_sandbox(level) as sandbox:  # type: ignore[arg-type]
        print(f"user {os.getuid()}, {level}, {sandbox.bounds.memory}, {sandbox.bounds.disk}", flush=True)
        for attack in ATTACKS:
            attack(sandbox)
            print(attack.__name__, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
