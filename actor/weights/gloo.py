"""Receiving a version over gloo, as one rank of the process group whose rank 0 is the learner.

Tensors are kept apart until all of them have arrived and the digest matches, so a broadcast that ends early changes no
model. The group is independent of torch's default one, so it can live in an actor or inside a vLLM worker.
"""

from __future__ import annotations

import hashlib
import socket
import time
from datetime import timedelta
from typing import Any

import torch
from torch._C import _distributed_c10d as c10d

from broker.weights.broadcast import Layout, TransferBroken, length, packs

Gloo: Any = c10d.ProcessGroupGloo
"""Typed as Any because torch's stubs leave out most of it."""


class GlooMember:
    """One receiving rank: `join`, then `receive` once per version, then `leave`."""

    def __init__(self) -> None:
        self._group: Any = None

    def join(self, group: str, address: str, port: int, rank: int, world: int, seconds: float) -> None:
        """Connect to the other ranks through the learner's TCP store. Raises TransferBroken after `seconds`."""
        self.leave()
        until, limit = time.monotonic() + seconds, timedelta(seconds=seconds)
        try:
            store = c10d.TCPStore(address, port, is_master=False, timeout=limit, wait_for_workers=False)
            options = Gloo._Options()
            options._timeout = timedelta(seconds=max(1.0, until - time.monotonic()))
            options._devices = [Gloo.create_device(hostname=_own_address(address, port))]
            self._group = Gloo(c10d.PrefixStore(group, store), rank, world, options)
        except (RuntimeError, OSError) as error:
            raise TransferBroken(
                f"rank {rank} of {world} did not connect to the learner at {address}:{port} within {seconds:g} s "
                f"({_first(error)}); check weights.broadcast_host and the network"
            ) from error

    def receive(self, layout: Layout, seconds: float) -> tuple[dict[str, torch.Tensor], str]:
        """All tensors by name, on the CPU, and their digest. Leaves the group and raises TransferBroken on failure."""
        if self._group is None:
            raise TransferBroken("this rank has left its group: the learner builds another with the next version")
        until = time.monotonic() + seconds
        digest, tensors = hashlib.sha256(layout.digest.encode()), dict[str, torch.Tensor]()
        try:
            for pack in packs(layout):
                buffer = self._take(length(pack), until)
                digest.update(buffer.numpy().data)
                for tensor, start in pack:
                    piece = buffer[start : start + tensor.bytes]
                    tensors[tensor.name] = piece.view(getattr(torch, tensor.dtype)).view(tensor.shape)
            sent = bytes(self._take(digest.digest_size, until).tolist())
        except RuntimeError as error:
            self.leave()
            raise TransferBroken(
                f"the broadcast ended after {len(tensors)} of {len(layout.tensors)} tensors ({_first(error)})"
            ) from error
        if sent != digest.digest():
            self.leave()
            raise TransferBroken(f"{digest.hexdigest()[:16]}… arrived, but the learner sent {sent.hex()[:16]}…")
        return tensors, digest.hexdigest()

    def leave(self) -> None:
        """Close the connections; other ranks' calls that wait for this one end with an error."""
        if self._group is not None:
            self._group.abort()
            self._group = None  # its threads end here: every call had a time limit

    def _take(self, size: int, until: float) -> torch.Tensor:
        assert self._group is not None
        left = timedelta(seconds=max(0.001, until - time.monotonic()))
        buffer = torch.empty(size, dtype=torch.uint8)
        options = c10d.BroadcastOptions()
        options.rootRank, options.rootTensor, options.timeout = 0, 0, left
        self._group.broadcast([buffer], options).wait(left)
        return buffer


def _own_address(address: str, port: int) -> str:
    """This machine's address on the route to the learner: gloo listens there and not on every interface."""
    family, _, _, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)  # sends nothing
        return str(probe.getsockname()[0])


def _first(error: Exception) -> str:
    """The first line of torch's message, without its source location."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return text.split("] ", 1)[-1][:160]
