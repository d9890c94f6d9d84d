"""The torch engine in a broadcast: one rank, over gloo. All tensors are here before the model is touched."""

from __future__ import annotations

import time

from actor.engines.torch.engine import TorchEngine
from actor.weights.gloo import GlooMember
from broker.weights.broadcast import Group, Layout, Seat


class TorchReceiver:
    """The methods' contract is `actor.receiving.Receiver`."""

    ranks = 1

    def __init__(self, engine: TorchEngine) -> None:
        self._engine, self._member = engine, GlooMember()

    def join(self, group: Group, seat: Seat) -> None:
        address, port = str(group.meeting["address"]), int(group.meeting["port"])
        self._member.join(group.id, address, port, seat.first, group.world, group.seconds)

    def receive(self, version: int, layout: Layout, seconds: float) -> tuple[str, dict[str, float]]:
        begin = time.perf_counter()
        tensors, digest = self._member.receive(layout, seconds)
        received = time.perf_counter() - begin
        spent = self._engine.take(version, tensors)
        return digest, spent | {"receive": received, "pause": spent["pause"] + received}

    def leave(self) -> None:
        self._member.leave()
