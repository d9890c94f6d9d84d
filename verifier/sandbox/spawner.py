"""The process that starts confined programs: single-threaded, without secrets, standard library only.

    service ── one message per run (plan + descriptors) ──▶ spawner ── fork ──▶ supervisor ── fork ──▶ the program
       ▲                                                                             │
       └───────────── control socket: the report; closing it ends the run ───────────┘

Its first message says which bounds of the kernel are in force. A fork from here takes a millisecond and is safe, unlike
a fork from a service with threads. Started by sandbox.py with nothing but PATH, LANG and the address of the user's
systemd in its environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

from verifier.sandbox import kernel
from verifier.sandbox.bounds import SCOPED, establish
from verifier.sandbox.confine import Plan
from verifier.sandbox.folders import remove
from verifier.sandbox.limits import MESSAGE_BYTES, Limits
from verifier.sandbox.ownership import claim
from verifier.sandbox.supervisor import supervise


def main(descriptor: int, home: str, *scoped: str) -> None:
    """Serve until the service closes its end of the socket; then wait until all runs have ended and remove `home`.

    `scoped`: "scoped" if systemd-run has started this process, in a scope of its own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the service, which then closes its end
    claimed = claim(Path(home))
    os.set_inheritable(descriptor, True)  # for the same program in a scope
    found = establish(home, scoped == (SCOPED,))
    os.set_inheritable(descriptor, False)
    # From here on, since it makes the files of /proc/self, which the trials need, root's.
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are reaped by the kernel
    requests = socket.socket(fileno=descriptor)
    requests.send(json.dumps(asdict(found.bounds)).encode())
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, MESSAGE_BYTES, 8)
        if not message:
            break
        if os.fork() == 0:
            requests.close()
            try:
                supervise(plan_of(json.loads(message)), descriptors, found)
            finally:  # never return to the loop, not even after an exception
                os._exit(1)
        for one in descriptors:
            os.close(one)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    if found.groups is not None:
        found.groups.remove()
    with contextlib.suppress(FileNotFoundError):  # the service has removed it
        remove(Path(home))
    os.close(claimed)


def plan_of(fields: dict[str, Any]) -> Plan:
    """The plan from its JSON fields."""
    return Plan(**{**fields, "limits": Limits(**fields["limits"])})
