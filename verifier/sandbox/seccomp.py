"""The system call filter: a classic BPF program that refuses calls which a judged program never needs.

Listed calls are refused with EPERM, calls newer than NEWEST with ENOSYS, and the rest are allowed: a kernel that adds a
dangerous call does not open a hole. The numbers are written out for the two supported architectures (a dependency on
libseccomp would add a shared library to every image for this one table). Besides the usual ways out of a sandbox
(ptrace, mounts, namespaces, keys, bpf, io_uring, sockets), the list has memory that no limit counts or that outlives
its process (System V and POSIX queues, memfd, huge pages, locks on parts of files, rules of seccomp and Landlock), what
the whole machine shares (asynchronous I/O contexts, sync), and calls on files and processes that Landlock does not
control (chmod, chown, times, xattrs, inotify, limits, priorities and signals of other processes). Sources: linux
include/uapi/linux/{filter,seccomp,audit}.h. This module only builds the program; kernel.py installs it.
"""

from __future__ import annotations

import errno
import platform
import struct

NEWEST = 451
"""The highest system call number known here: cachestat, Linux 6.5."""

_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000

_REFUSED = """
socket:41,198 connect:42,203 bind:49,200 listen:50,201 ptrace:101,117 process_vm_readv:310,270 process_vm_writev:311,271
pidfd_open:434,434 pidfd_getfd:438,438 pidfd_send_signal:424,424 kcmp:312,272 process_madvise:440,440
process_mrelease:448,448 mount:165,40 umount2:166,39 pivot_root:155,41 chroot:161,51 move_mount:429,429
open_tree:428,428 fsopen:430,430 fsconfig:431,431 fsmount:432,432 fspick:433,433 mount_setattr:442,442 unshare:272,97
setns:308,268 add_key:248,217 request_key:249,218 keyctl:250,219 bpf:321,280 perf_event_open:298,241
userfaultfd:323,282 io_uring_setup:425,425 io_uring_enter:426,426 io_uring_register:427,427 kexec_load:246,104
kexec_file_load:320,294 init_module:175,105 finit_module:313,273 delete_module:176,106 name_to_handle_at:303,264
open_by_handle_at:304,265 personality:135,92 quotactl:179,60 quotactl_fd:443,443 acct:163,89 swapon:167,224
swapoff:168,225 reboot:169,142 sethostname:170,161 setdomainname:171,162 settimeofday:164,170 clock_settime:227,112
adjtimex:159,171 clock_adjtime:305,266 syslog:103,116 lookup_dcookie:212,18 nfsservctl:180,42 vhangup:153,58
mknodat:259,33 fanotify_init:300,262 iopl:172,- ioperm:173,- mknod:133,- modify_ldt:154,- uselib:134,- ustat:136,-
sysfs:139,- shmget:29,194 shmctl:31,195 shmat:30,196 msgget:68,186 msgrcv:70,188 msgsnd:69,189 msgctl:71,187
semget:64,190 semctl:66,191 semop:65,193 semtimedop:220,192 mq_open:240,180 mq_unlink:241,181 memfd_create:319,279
memfd_secret:447,447 chmod:90,- fchmod:91,52 fchmodat:268,53 chown:92,- lchown:94,- fchown:93,55 fchownat:260,54
setxattr:188,5 lsetxattr:189,6 fsetxattr:190,7 removexattr:197,14 lremovexattr:198,15 fremovexattr:199,16 utime:132,-
utimes:235,- utimensat:280,88 futimesat:261,- truncate:76,45 setpriority:141,140 ioprio_set:251,30
sched_setparam:142,118 sched_setscheduler:144,119 sched_setattr:314,274 sched_setaffinity:203,122 migrate_pages:256,238
move_pages:279,239 mbind:237,235 set_mempolicy:238,237 set_mempolicy_home_node:450,450 io_setup:206,0
io_destroy:207,1 io_getevents:208,4 io_submit:209,2 io_cancel:210,3 io_pgetevents:333,292 timer_create:222,107
sync:162,81 syncfs:306,267 inotify_init:253,- inotify_init1:294,26 inotify_add_watch:254,27 fanotify_mark:301,263
seccomp:317,277 landlock_create_ruleset:444,444 landlock_add_rule:445,445 landlock_restrict_self:446,446
"""
_UNCOUNTED = "vmsplice:278,75 splice:275,76 tee:276,77"
"""Calls that keep memory in pipes, where only a control group counts it."""
_ARGUMENTS = (
    "socketpair:53,199 clone:56,220 clone3:435,435 fork:57,- vfork:58,- kill:62,129 tkill:200,130 tgkill:234,131 \
rt_sigqueueinfo:129,138 rt_tgsigqueueinfo:297,240 prlimit64:302,261 setrlimit:160,164 fcntl:72,25 ioctl:16,29 \
mmap:9,222 fallocate:285,47 exit:60,93 exit_group:231,94 prctl:157,167"
)

_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020000
_FCNTL = (6, 7, 37, 38, 8, 15, 10, 1024, 1026, 1031)
"""F_SETLK, F_SETLKW, F_OFD_SETLK and F_OFD_SETLKW lock a part of a file: as many as a program likes, in kernel memory
that not even a control group counts (Linux 6.18; flock(2), one lock for each open file, is allowed). F_SETOWN and
F_SETOWN_EX choose the process that a signal goes to, F_SETSIG the signal (SIGKILL too), which F_SETLEASE and F_NOTIFY
then send; F_SETPIPE_SZ takes kernel memory."""
_IOCTL = (0x5412, 0x541C, 0x8901, 0x8902)
"""TIOCSTI and TIOCLINUX inject input into a terminal; FIOSETOWN and SIOCSPGRP do the same as F_SETOWN."""

_PRCTL = (22,)
"""PR_SET_SECCOMP: like seccomp(2) and Landlock's calls, memory in the kernel for rules that a program does not need."""

_MAP_SHARED, _MAP_ANONYMOUS, _MAP_HUGETLB = 0x01, 0x20, 0x40000
_RLIMIT_CPU = 0
_SIGKILL, _KILLED = 9, 128 + 9

_LOAD, _EQUAL, _ABOVE, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
_ALLOW = 0x7FFF0000
_KILL = 0x80000000
_ERRNO = 0x00050000
_EPERM = _ERRNO | errno.EPERM
_ENOSYS = _ERRNO | errno.ENOSYS
_EOPNOTSUPP = _ERRNO | errno.EOPNOTSUPP


def supported() -> bool:
    """Whether there is a table for this machine's architecture."""
    return platform.machine() in _AUDIT


def program(*, own_pid: int | None, may_fork: bool, grouped: bool = False, tmpfs: bool = False) -> bytes:
    """The filter as an array of struct sock_filter (8 bytes each).

    `own_pid`: the only process that may be signalled, and not with SIGKILL; None where a pid namespace or Landlock's
    scope already keeps signals inside. `may_fork` False: threads only. `grouped` False: no control group counts the
    memory, so shared anonymous memory is refused, and so is everything by which a process without children could look
    as if the machine's OOM killer had killed it (a signal, a lower limit of CPU time, the exit code of a killed
    process). `tmpfs` False: the size of the directory is only measured, so files do not grow without being written.
    Raises ValueError on an architecture without a table.
    """
    machine = platform.machine()
    if machine not in _AUDIT:
        raise ValueError(f"no system call table for {machine!r}; there is one for {', '.join(_AUDIT)}")
    column = 0 if machine == "x86_64" else 1
    refused, numbers = _table(_REFUSED, column), _table(_ARGUMENTS, column)

    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _AUDIT[machine]), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    if machine == "x86_64":  # the x32 calls carry the same numbers with a bit set
        code += [(_ANY_BIT, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    code += [(_ABOVE, 0, 1, NEWEST), (_RETURN, 0, 0, _ENOSYS)]
    if not grouped:
        refused |= _table(_UNCOUNTED, column)
    for number in refused.values():
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]

    def examine(name: str, *body: tuple[int, int, int, int]) -> None:
        """Add `body`, run for calls of that name only; it must end in a return."""
        if name in numbers:
            code.append((_EQUAL, 0, len(body), numbers[name]))
            code.extend(body)

    refuse, allow = (_RETURN, 0, 0, _EPERM), (_RETURN, 0, 0, _ALLOW)
    # A datagram socket can send to any socket file by address; a connected pair of stream sockets reaches nothing else.
    examine("socketpair", _argument(1), (_AND, 0, 0, 0xF), (_EQUAL, 0, 1, 1), allow, refuse)
    # clone3 passes its flags in memory, which a filter cannot read; on ENOSYS libc falls back to clone.
    examine("clone3", (_RETURN, 0, 0, _ENOSYS))
    namespaces = (_argument(0), (_ANY_BIT, 0, 1, _CLONE_NAMESPACES), refuse)
    if may_fork:
        examine("clone", *namespaces, allow)
    else:
        examine("clone", *namespaces, (_ANY_BIT, 1, 0, _CLONE_THREAD), refuse, allow)
        examine("fork", refuse)
        examine("vfork", refuse)
    if own_pid is not None:
        for name, place in (("kill", 1), ("tgkill", 2)):
            only = (_argument(0), (_EQUAL, 1, 0, own_pid), refuse)
            examine(name, *only, _argument(place), (_EQUAL, 0, 1, _SIGKILL), refuse, allow)
        for name in ("tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"):
            examine(name, refuse)
    disguised = not grouped and not may_fork
    if disguised and own_pid is None:
        for name, place in (("kill", 1), ("tgkill", 2), ("tkill", 1), ("rt_sigqueueinfo", 1), ("rt_tgsigqueueinfo", 2)):
            examine(name, _argument(place), (_EQUAL, 0, 1, _SIGKILL), refuse, allow)
    own = (_argument(0), (_EQUAL, 1, 0, 0), refuse)
    if disguised:
        for name in ("exit", "exit_group"):
            examine(name, _argument(0), (_AND, 0, 0, 0xFF), (_EQUAL, 0, 1, _KILLED), refuse, allow)
        examine("setrlimit", _argument(0), (_EQUAL, 0, 1, _RLIMIT_CPU), refuse, allow)
        # Reading the limit passes a null pointer for the new one.
        new = (_argument(2), (_EQUAL, 0, 2, 0), _argument(2, high=True), (_EQUAL, 1, 0, 0), refuse, allow)
        examine("prlimit64", *own, _argument(1), (_EQUAL, 1, 0, _RLIMIT_CPU), allow, *new)
    else:
        examine("prlimit64", *own, allow)
    huge = (_argument(3), (_ANY_BIT, 0, 1, _MAP_HUGETLB), refuse)
    if grouped:
        examine("mmap", *huge, allow)
    else:
        examine("mmap", *huge, (_ANY_BIT, 0, 2, _MAP_ANONYMOUS), (_ANY_BIT, 0, 1, _MAP_SHARED), refuse, allow)
    if not tmpfs:  # libc then writes zeros instead
        examine("fallocate", (_RETURN, 0, 0, _EOPNOTSUPP))
    for name, commands in (("fcntl", _FCNTL), ("ioctl", _IOCTL), ("prctl", _PRCTL)):
        body = [_argument(0 if name == "prctl" else 1)]
        for command in commands:
            body += [(_EQUAL, 0, 1, command), refuse]
        examine(name, *body, allow)
    code.append(allow)
    return b"".join(struct.pack("=HBBI", operation, yes, no, value) for operation, yes, no, value in code)


def _argument(index: int, high: bool = False) -> tuple[int, int, int, int]:
    """An instruction that loads the low half of an argument (little-endian): all of an int, and every flag of clone."""
    return (_LOAD, 0, 0, 16 + 8 * index + (4 if high else 0))


def _table(text: str, column: int) -> dict[str, int]:
    pairs = (entry.split(":") for entry in text.split())
    return {name: int(places.split(",")[column]) for name, places in pairs if places.split(",")[column] != "-"}
