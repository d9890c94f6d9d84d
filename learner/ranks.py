"""The process groups of the learner's ranks, their device, and the exchange of small objects between them.

Tensor collectives go through the default group (NCCL on CUDA, gloo on a CPU). Control messages — small Python objects
from our own ranks — go through a gloo group of their own, so that waiting for work never occupies a GPU. RANK,
WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are set by torchrun or the launcher; without them this is a world of
one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from broker.errors import EX_USAGE, SieveError

T = TypeVar("T")


class DeviceUnavailable(SieveError):
    """The configured device does not exist on this machine."""

    exit_code = EX_USAGE


class Ranks:
    """This process's place among the learner's ranks. Creates the process groups; `close` ends them."""

    def __init__(self, device: str, collective_seconds: float) -> None:
        """`device`: auto, cpu or cuda. Raises DeviceUnavailable when cuda is asked for and absent."""
        if device == "cuda" and not torch.cuda.is_available():
            raise DeviceUnavailable("learner.device = cuda but PyTorch sees no GPU: set learner.device to cpu or auto")
        kind = "cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu"
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.device = (
            torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device("cpu")
        )
        if kind == "cuda":
            torch.cuda.set_device(self.device)
        backend = "nccl" if kind == "cuda" else "gloo"
        timeout = timedelta(seconds=collective_seconds)
        if self.world == 1:
            dist.init_process_group(
                backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1, timeout=timeout
            )
        else:
            dist.init_process_group(backend, rank=self.rank, world_size=self.world, timeout=timeout)
        self._control = dist.new_group(backend="gloo", timeout=timeout) if self.world > 1 else None
        self.mesh: DeviceMesh = init_device_mesh(kind, (self.world,))

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the one that leases groups, writes files and commits."""
        return self.rank == 0

    def close(self) -> None:
        """End the process groups."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def tell(self, value: T | None) -> T:
        """Rank 0's value on every rank; the others pass None."""
        box: list[Any] = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]  # type: ignore[no-any-return]

    def gather(self, value: T) -> list[T]:
        """Every rank's value on every rank, in rank order."""
        if self.world == 1:
            return [value]
        box: list[Any] = [None] * self.world
        dist.all_gather_object(box, value, group=self._control)
        return box

    def gather_first(self, value: T) -> list[T]:
        """Every rank's value on rank 0, in rank order; [] elsewhere."""
        if self.world == 1:
            return [value]
        box: list[Any] | None = [None] * self.world if self.first else None
        dist.gather_object(value, box, dst=0, group=self._control)
        return box or []

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the ranks, in float64."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._control)
        return total.tolist()

    def barrier(self) -> None:
        """Return once every rank has called this."""
        if self.world > 1:
            dist.barrier(group=self._control)
