"""TCP ports for processes that tests start, different in every process that runs tests on this machine."""

from __future__ import annotations

import socket

_held: list[socket.socket] = []


def hold_port() -> int:
    """A free loopback port, held until this process ends.

    The socket that holds it is bound and never listens. The kernel therefore gives the port to nobody who asks for any
    free one, while a process that is told its number can listen on it, again and again, because both sides set
    SO_REUSEADDR (`torch.distributed` does).
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    _held.append(holder)
    return int(holder.getsockname()[1])
