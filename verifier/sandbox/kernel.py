"""Wrappers for kernel calls that Python lacks: Landlock, seccomp, prctl, mounts. Each raises OSError naming the call.

Landlock (kernel documentation, userspace-api/landlock) takes rights away from the calling process and everything it
starts: here all file access outside the named trees, TCP (ABI 4), ioctls on devices (5), abstract sockets and signals
to processes outside (6). What an older ABI does not cover is left to the system call filter.
"""

from __future__ import annotations

import ctypes
import os
import re
import stat
import struct
from collections.abc import Iterable

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
_SECCOMP_MODE_FILTER = 2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system call numbers, the same on every architecture
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _IOCTL_DEV = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_ALL_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
_TCP_BIND_CONNECT = 3
_SCOPE_ABSTRACT_AND_SIGNAL = 3
SCOPED_SIGNALS_ABI = 6

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 2, 4, 1 << 14, 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def prctl(option: int, value: int = 0, pointer: ctypes.c_void_p | None = None) -> None:
    """Call prctl(2)."""
    # The kernel reads the arguments as long; ctypes would pass a bare int as 32 bits.
    second = pointer if pointer is not None else ctypes.c_ulong(0)
    if _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), second, ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}): {os.strerror(ctypes.get_errno())}")


def install_filter(code: bytes) -> None:
    """Install a seccomp filter for this process and its descendants; requires no_new_privs."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    found = Program(len(code) // 8, code)
    prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.cast(ctypes.byref(found), ctypes.c_void_p))


def counts_tasks_by_namespace() -> bool:
    """Whether RLIMIT_NPROC counts the tasks of a user within a user namespace (since Linux 5.14)."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return found is not None and (int(found[1]), int(found[2])) >= (5, 14)


def own_mounts(new_user: bool) -> None:
    """Give this process mounts of its own, which end with it; `new_user`: in a user namespace of its own, in which an
    ordinary user may mount."""
    user, group = os.getuid(), os.getgid()
    if _libc.unshare(ctypes.c_int(_CLONE_NEWNS | (_CLONE_NEWUSER if new_user else 0))) != 0:
        raise OSError(ctypes.get_errno(), f"unshare: {os.strerror(ctypes.get_errno())}")
    if new_user:
        # The files below belong to this user only while the process is dumpable, which the change of namespace ended.
        prctl(PR_SET_DUMPABLE, 1)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        prctl(PR_SET_DUMPABLE, 0)
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE, None)


def mount_tmpfs(place: str, options: str) -> None:
    """Mount a tmpfs at the folder `place`."""
    _mount("tmpfs", place, "tmpfs", _MS_NOSUID | _MS_NODEV, options)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    if _libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]) != 0:
        raise OSError(ctypes.get_errno(), f"mount at {target}: {os.strerror(ctypes.get_errno())}")


def landlock_abi() -> int:
    """The version of Landlock's ABI; 0 if the kernel has none, or it is switched off or forbidden here."""
    found = _libc.syscall(ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    return max(0, int(found))


def restrict_self(abi: int, readable: Iterable[str], writable: Iterable[str]) -> None:
    """Restrict this process to `readable` (with execution) and `writable` trees, irrevocably; requires no_new_privs.

    A readable path that does not exist is skipped; a writable one must exist.
    """
    handled = _ALL_BY_ABI[min(abi, 5)]
    fields = [handled]
    if abi >= 4:
        fields.append(_TCP_BIND_CONNECT)
    if abi >= SCOPED_SIGNALS_ABI:
        fields.append(_SCOPE_ABSTRACT_AND_SIGNAL)
    ruleset = _syscall(
        "landlock_create_ruleset", _CREATE_RULESET, struct.pack(f"={len(fields)}Q", *fields), 8 * len(fields), 0
    )
    try:
        for path in readable:
            if os.path.exists(path):
                _allow(ruleset, path, handled & (_EXECUTE | _READ_FILE | _READ_DIR))
        for path in writable:
            device = stat.S_ISCHR(os.stat(path).st_mode)
            # Executing what it wrote is allowed in its directory: an interpreter could do the same with those bytes.
            rights = _READ_FILE | _WRITE_FILE if device else ~(_MAKE_CHAR | _MAKE_BLOCK | _IOCTL_DEV)
            _allow(ruleset, path, handled & rights)
        _syscall("landlock_restrict_self", _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _FILE_RIGHTS
        _syscall("landlock_add_rule", _ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


def _syscall(name: str, number: int, *arguments: int | bytes) -> int:
    sent = [ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_long(value) for value in arguments]
    found = int(_libc.syscall(ctypes.c_long(number), *sent))
    if found < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return found
