"""Broadcasts into the torch engine: one rank, over gloo. All tensors have arrived before the model is changed."""

from __future__ import annotations

import time

from actor.engines.torch.engine import TorchEngine
from actor.weights.gloo import GlooMember
from broker.weights.broadcast import Communicator, Layout, Participant


class TorchReceiver:
    """The torch engine's Receiver (actor.weights.broadcast)."""

    ranks = 1

    def __init__(self, engine: TorchEngine) -> None:
        self._engine, self._member = engine, GlooMember()

    def join(self, communicator: Communicator, own: Participant) -> None:
        address, port = str(communicator.rendezvous["address"]), int(communicator.rendezvous["port"])
        self._member.join(communicator.id, address, port, own.first_rank, communicator.world_size, communicator.seconds)

    def receive(self, version: int, layout: Layout, seconds: float) -> tuple[str, dict[str, float]]:
        begin = time.perf_counter()
        tensors, digest = self._member.receive(layout, seconds)
        received = time.perf_counter() - begin
        spent = self._engine.take(version, tensors)
        return digest, spent | {"receive": received, "pause": spent["pause"] + received}

    def leave(self) -> None:
        self._member.leave()
