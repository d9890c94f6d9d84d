"""Sending over gloo: rank 0 of a process group whose other ranks are the actors' engines.

Independent of the learner's own process groups.
"""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from torch._C import _distributed_c10d as c10d

from broker.weights.broadcast import Layout, TransferBroken, length, packs

Gloo: Any = c10d.ProcessGroupGloo
"""Typed as Any because torch's stubs leave out most of it."""


class GlooLink:
    """A Link over gloo: a TCP store that listens on `host`, and the process group that meets there."""

    def __init__(self, host: str) -> None:
        family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        self._listener: socket.socket | None = socket.create_server(address[:2], family=family)
        self._host = str(address[0])
        self._port = int(self._listener.getsockname()[1])
        self._store: c10d.TCPStore | None = None
        self._group: Any = None

    @property
    def rendezvous(self) -> dict[str, str | int]:
        return {"address": self._host, "port": self._port}

    def open(self, group: str, world: int, seconds: float) -> None:
        """See Link."""
        assert self._listener is not None
        limit = timedelta(seconds=seconds)
        try:
            # The store takes over this socket; one that it opened itself would listen on every interface.
            self._store = c10d.TCPStore(
                self._host,
                self._port,
                is_master=True,
                timeout=limit,
                wait_for_workers=False,
                master_listen_fd=self._listener.detach(),
            )
            self._listener = None
            options = Gloo._Options()
            options._timeout = limit
            options._devices = [Gloo.create_device(hostname=self._host)]
            self._group = Gloo(c10d.PrefixStore(group, self._store), 0, world, options)
        except RuntimeError as error:
            raise TransferBroken(
                f"not all of {world} ranks connected within weights.broadcast_seconds = {seconds:g} s ({_first(error)})"
            ) from error

    def send(self, layout: Layout, tensors: Mapping[str, torch.Tensor], seconds: float) -> str:
        """See Link. The digest covers the layout and every byte, and is sent after them."""
        until, digest = time.monotonic() + seconds, hashlib.sha256(layout.digest.encode())
        sent = 0
        try:
            for pack in packs(layout):
                buffer = torch.zeros(length(pack), dtype=torch.uint8)
                for tensor, start in pack:
                    source = tensors[tensor.name].contiguous().view(-1).view(torch.uint8)
                    buffer[start : start + tensor.bytes] = source
                self._give(buffer, until)
                digest.update(buffer.numpy().data)
                sent += len(pack)
            self._give(torch.tensor(list(digest.digest()), dtype=torch.uint8), until)
        except RuntimeError as error:
            raise TransferBroken(
                f"the broadcast ended after {sent} of {len(layout.tensors)} tensors ({_first(error)})"
            ) from error
        return digest.hexdigest()

    def close(self) -> None:
        """See Link."""
        if self._listener is not None:
            self._listener.close()
        if self._group is not None:
            self._group.abort()
            self._group = None  # its threads end here: every call had a time limit
        self._store = None

    def _give(self, buffer: torch.Tensor, until: float) -> None:
        assert self._group is not None
        left = timedelta(seconds=max(0.001, until - time.monotonic()))
        options = c10d.BroadcastOptions()
        options.rootRank, options.rootTensor, options.timeout = 0, 0, left
        self._group.broadcast([buffer], options).wait(left)


def _first(error: Exception) -> str:
    """The first line of torch's message, without its source location."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return text.split("] ", 1)[-1][:160]
