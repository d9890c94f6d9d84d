"""Sending over NCCL with the trainer side of vLLM's weight transfer: packed broadcasts from this GPU into its workers.

The learner imports vLLM only here, and only with `weights.broadcast: nccl`. NCCL has no time limits, so every call runs
on a thread; a call that is late is aborted, which also ends it for all peers that are still alive.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from broker.errors import EX_USAGE, SieveError
from broker.weights.broadcast import Layout, TransferBroken

ABORT_SECONDS = 10.0


class BroadcastUnavailable(SieveError):
    """This machine or installation cannot send the way that `weights.broadcast` says."""

    exit_code = EX_USAGE


def require() -> None:
    """Raise BroadcastUnavailable when CUDA or vLLM is missing."""
    if not torch.cuda.is_available():
        raise BroadcastUnavailable(
            "weights.broadcast = nccl, but PyTorch sees no CUDA device in the learner's rank 0: use none, or gloo"
        )
    try:
        import vllm.distributed.weight_transfer.nccl_engine  # noqa: F401
    except ImportError as error:
        raise BroadcastUnavailable(
            f"weights.broadcast = nccl sends with vLLM's transfer engine, which cannot be imported ({error}): "
            f"pip install 'sieve-rl[vllm]'"
        ) from error


class NcclLink:
    """A Link over NCCL. The unique id is sent through Redis, so nothing listens and nothing is unpickled."""

    def __init__(self) -> None:
        from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary

        self._id = bytes(NCCLLibrary().ncclGetUniqueId().internal)
        self._comm: Any = None

    @property
    def rendezvous(self) -> dict[str, str | int]:
        return {"nccl_unique_id_b64": base64.b64encode(self._id).decode()}

    def open(self, group: str, world: int, seconds: float) -> None:
        """See Link."""
        from vllm.distributed.weight_transfer.nccl_common import uid_init_process_group

        device = torch.cuda.current_device()
        self._comm = self._within(
            seconds, f"{world} ranks to connect", lambda: uid_init_process_group(self._id, 0, world, device)
        )

    def send(self, layout: Layout, tensors: Mapping[str, torch.Tensor], seconds: float) -> str:
        """See Link. The digest is the layout's: NCCL itself protects the tensors in transit."""
        from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

        class Source(WeightSource):  # type: ignore[misc]
            def metadata(self) -> list[Any]:
                return [ParamMeta(t.name, getattr(torch, t.dtype), t.shape) for t in layout.tensors]

            def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
                for tensor in layout.tensors:
                    yield tensor.name, tensors[tensor.name].cuda(non_blocking=True)

        engine = NCCLTrainerWeightTransferEngine(client=_NoClient(), source=Source())
        engine.model_update_group = self._comm
        self._within(seconds, "the broadcast", engine.send_weights)
        return layout.digest

    def close(self) -> None:
        """See Link."""
        if self._comm is not None:
            self._comm.destroy()
            self._comm = None

    def _within(self, seconds: float, what: str, work: Callable[[], Any]) -> Any:
        box: list[Any] = []
        device = torch.cuda.current_device()

        def run() -> None:
            torch.cuda.set_device(device)
            try:
                box.append((True, work()))
            except Exception as error:
                box.append((False, error))

        thread = threading.Thread(target=run, name="nccl", daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            self.close()
            thread.join(ABORT_SECONDS)  # waiting for ranks to connect cannot be aborted; that thread is left behind
            raise TransferBroken(f"waited {seconds:g} s for {what}")
        well, value = box[0]
        if not well:
            raise TransferBroken(f"{what}: {value}") from value
        return value


class _NoClient:
    """A client for vLLM's trainer without effect: our engines follow the broadcast's state in Redis instead."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Participants connect by themselves once they are fixed."""

    def start_weight_update(self) -> None:
        """Each actor pauses its own engine."""

    def update_weights(self, update_info: Any) -> None:
        """Each actor reads the layout from Redis."""

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Each actor sets its version once it has all of it."""
