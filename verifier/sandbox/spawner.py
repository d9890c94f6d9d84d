"""The process that starts confined programs: single-threaded, without secrets, standard library only.

    service ── one message per run (plan + descriptors) ──▶ spawner ── fork ──▶ supervisor ── fork ──▶ the program
       ▲                                                                             │
       └───────────── control socket: the report; closing it ends the run ───────────┘

A fork from here takes a millisecond and is safe, unlike a fork from a service with threads. Started by sandbox.py with
nothing but PATH and LANG in its environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

from verifier.sandbox import kernel
from verifier.sandbox.confine import Plan
from verifier.sandbox.folders import remove
from verifier.sandbox.limits import MESSAGE_BYTES, Limits
from verifier.sandbox.supervisor import supervise


def main(descriptor: int, home: str) -> None:
    """Serve until the service closes its end of the socket; then wait until all runs have ended and remove `home`."""
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the service, which then closes its end
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are reaped by the kernel
    requests = socket.socket(fileno=descriptor)
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, MESSAGE_BYTES, 8)
        if not message:
            break
        if os.fork() == 0:
            requests.close()
            try:
                supervise(plan_of(json.loads(message)), descriptors)
            finally:  # never return to the loop, not even after an exception
                os._exit(1)
        for one in descriptors:
            os.close(one)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    with contextlib.suppress(FileNotFoundError):  # the service has removed it
        remove(Path(home))


def plan_of(fields: dict[str, Any]) -> Plan:
    """The plan from its JSON fields."""
    return Plan(**{**fields, "limits": Limits(**fields["limits"])})
