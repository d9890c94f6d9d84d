"""Sending over NCCL with vLLM's own trainer side: packed broadcasts from this GPU into the engines' workers.

vLLM is imported here only, and only when weights.transport is nccl. NCCL has no time limits of its own: every call runs
on a thread, and one that is late is aborted, which ends it on all sides that are still there.
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


class TransportUnavailable(SieveError):
    """This machine or installation cannot send the way that weights.transport says."""

    exit_code = EX_USAGE


def require() -> None:
    """Raises TransportUnavailable where NCCL or vLLM is missing."""
    if not torch.cuda.is_available():
        raise TransportUnavailable(
            "weights.transport = nccl, but PyTorch sees no CUDA device in the learner's rank 0: use files, or gloo"
        )
    try:
        import vllm.distributed.weight_transfer.nccl_engine  # noqa: F401
    except ImportError as error:
        raise TransportUnavailable(
            f"weights.transport = nccl sends with vLLM's transfer engine, which cannot be imported ({error}): "
            f"pip install 'sieve-rl[vllm]'"
        ) from error


class NcclLink:
    """One communicator; its unique id travels through the broker, so nothing listens and nothing is unpickled."""

    def __init__(self) -> None:
        from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary

        self._id = bytes(NCCLLibrary().ncclGetUniqueId().internal)
        self._comm: Any = None

    @property
    def meeting(self) -> dict[str, str | int]:
        return {"nccl_unique_id_b64": base64.b64encode(self._id).decode()}

    def open(self, group: str, world: int, seconds: float) -> None:
        """Wait for the others. Raises TransferBroken after `seconds`."""
        from vllm.distributed.weight_transfer.nccl_common import uid_init_process_group

        device = torch.cuda.current_device()
        self._comm = self._within(
            seconds, f"{world} ranks to meet", lambda: uid_init_process_group(self._id, 0, world, device)
        )

    def send(self, layout: Layout, tensors: Mapping[str, torch.Tensor], seconds: float) -> str:
        """Everything to everyone; the layout's digest, since NCCL checks the transport. Raises TransferBroken."""
        from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

        class Source(WeightSource):  # type: ignore[misc]
            def metadata(self) -> list[Any]:
                return [ParamMeta(t.name, getattr(torch, t.dtype), t.shape) for t in layout.tensors]

            def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
                for tensor in layout.tensors:
                    yield tensor.name, tensors[tensor.name].cuda(non_blocking=True)

        engine = NCCLTrainerWeightTransferEngine(client=_Told(), source=Source())
        engine.model_update_group = self._comm
        self._within(seconds, "the broadcast", engine.send_weights)
        return layout.digest

    def close(self) -> None:
        """Abort the communicator; members that wait for this rank end with an error."""
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
            thread.join(ABORT_SECONDS)  # one that waits for ranks to meet has nothing to abort, and is left behind
            raise TransferBroken(f"waited {seconds:g} s for {what}")
        well, value = box[0]
        if not well:
            raise TransferBroken(f"{what}: {value}") from value
        return value


class _Told:
    """vLLM's trainer drives engines through these calls; ours are told by the transfer's record at the broker."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """The members meet by themselves once they are fixed."""

    def start_weight_update(self) -> None:
        """Each pauses its own engine."""

    def update_weights(self, update_info: Any) -> None:
        """Each knows the layout from the record."""

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Each stamps the version when it has all of it."""
