"""The part that runs inside vLLM's workers when weights are broadcast; each worker is one rank and imports it by name.

Over gloo a version is received whole and checked, in host memory, before the model is changed. Over NCCL it goes
straight into the model, layer by layer, through vLLM's own engine: a broadcast that ends early leaves a mixture, and
the actor samples nothing until it has loaded files. Files are loaded as without broadcasts.

A step that fails in one worker fails in all workers of its engine (`_together`), and each undoes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.parallel_state import get_world_group
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

from actor.engines.vllm import worker as vllm_worker
from actor.engines.vllm.worker import Directory, FileTransfer
from actor.weights.gloo import GlooMember
from broker.weights.broadcast import Layout, TransferBroken

ABORT_SECONDS = 10.0
SAID_BYTES = 512
"""Size of an error's text as it is sent to the other workers."""


class Extension(vllm_worker.Extension):
    """Methods that are added to vLLM's workers."""

    weight_transfer_engine: Any
    _weight_update_active: bool

    def received_digest(self) -> str:
        """The digest of what this worker received last."""
        return str(self.weight_transfer_engine.digest)

    def leave_group(self) -> None:
        """Leave the group and cancel the update that was under way in it."""
        self.weight_transfer_engine.shutdown()
        # After a broadcast that broke off for one worker, others may have received all of it: none may load it.
        self._weight_update_active = False


@dataclass
class Meeting(WeightTransferInitInfo):  # type: ignore[misc]
    """Where the learner and all workers meet; this actor's workers have ranks first, first + 1, …"""

    group: str
    first: int
    world: int
    seconds: float
    address: str = ""
    port: int = 0
    nccl_unique_id_b64: str = ""


@dataclass
class Update(WeightTransferUpdateInfo):  # type: ignore[misc]
    """One of: a verified directory; a layout to receive within `seconds`; what was received, to be loaded."""

    directory: str = ""
    layout: str = ""
    seconds: float = 0.0
    received: bool = False


class GlooTransfer(FileTransfer):
    """Receives into host memory, then loads."""

    init_info_cls = Meeting
    update_info_cls = Update

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.digest = ""
        self._member = GlooMember()
        self._tensors: dict[str, torch.Tensor] = {}

    def init_transfer_engine(self, init_info: Meeting) -> None:
        seat = init_info.address, init_info.port, _rank(self, init_info), init_info.world, init_info.seconds
        _together(self, lambda: self._member.join(init_info.group, *seat), self.shutdown)

    def start_weight_update(self) -> None:
        """Nothing to do before everything is here: starting a reload takes the model's tensors apart."""

    def receive_weights(self, update_info: Update) -> None:
        if update_info.layout:
            layout = Layout.model_validate_json(update_info.layout)
            _together(self, lambda: self._receive(layout, update_info.seconds), self.shutdown)
            return
        initialize_layerwise_reload(self.model)
        if update_info.received:
            tensors, self._tensors = self._tensors, {}
            self.model.load_weights(iter(tensors.items()))
        else:
            super().receive_weights(Directory(update_info.directory))

    def shutdown(self) -> None:
        self._member.leave()
        self._tensors = {}

    def _receive(self, layout: Layout, seconds: float) -> None:
        tensors, digest = self._member.receive(layout, seconds)
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise ValueError(f"{name} has values that are not finite")
        self._tensors, self.digest = tensors, digest


class NcclTransfer(FileTransfer):
    """vLLM's own packed broadcast with deadlines: NCCL has none, and a peer that died would block this worker."""

    init_info_cls = Meeting
    update_info_cls = Update

    def __init__(self, *args: Any) -> None:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

        super().__init__(*args)
        self.digest = ""
        self._nccl: Any = NCCLWeightTransferEngine(*args)

    def init_transfer_engine(self, init_info: Meeting) -> None:
        from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo

        self.shutdown()
        info = NCCLWeightTransferInitInfo(
            rank_offset=init_info.first,
            world_size=init_info.world,
            packed=True,
            nccl_unique_id_b64=init_info.nccl_unique_id_b64,
        )
        meet = lambda: self._nccl.init_transfer_engine(info)  # noqa: E731
        _together(self, lambda: self._within(init_info.seconds, "the others to meet", meet), self.shutdown)

    def start_weight_update(self) -> None:
        """Nothing to do, as over gloo."""

    def receive_weights(self, update_info: Update) -> None:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferUpdateInfo

        initialize_layerwise_reload(self.model)
        if not update_info.layout:
            super().receive_weights(Directory(update_info.directory))
            return
        layout = Layout.model_validate_json(update_info.layout)
        info = NCCLWeightTransferUpdateInfo(
            names=[one.name for one in layout.tensors],
            dtype_names=[one.dtype for one in layout.tensors],
            shapes=[list(one.shape) for one in layout.tensors],
        )
        take = lambda: self._nccl.receive_weights(info)  # noqa: E731
        _together(self, lambda: self._within(update_info.seconds, "the broadcast", take), self._give_up)
        self.digest = layout.digest  # not computed: NCCL's transport is taken to be reliable

    def shutdown(self) -> None:
        self._nccl.shutdown()

    def _give_up(self) -> None:
        self.shutdown()
        self.finish_weight_update()  # puts the model's tensors back in place, whatever values they have

    def _within(self, seconds: float, what: str, work: Callable[[], None]) -> None:
        """Run `work` on a thread and abort it after `seconds`. Raises TransferBroken."""
        failed: list[BaseException] = []

        def run() -> None:
            torch.cuda.set_device(self.device)
            try:
                work()
                torch.cuda.synchronize(self.device)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run, name="nccl", daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            # After an abort the calls return, but with undefined data: an error in any case.
            self.shutdown()
            thread.join(ABORT_SECONDS)
            raise TransferBroken(f"waited {seconds:g} s for {what}")
        if failed:
            raise TransferBroken(f"{what}: {failed[0]}") from failed[0]


def _together(engine: Any, work: Callable[[], None], undo: Callable[[], None]) -> None:
    """Run `work` in each worker and, if one fails, `undo` in all. Raises TransferBroken in the engine's last worker.

    Only the last raises, because vLLM reads its workers' answers in order and stops at the first error: it would take
    the remaining answers for those to its next call."""
    said = ""
    try:
        work()
    except Exception as error:
        said = str(error) or type(error).__name__
    own = torch.zeros(SAID_BYTES, dtype=torch.uint8)
    encoded = said.encode()[:SAID_BYTES]
    own[: len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8) if encoded else 0
    workers = get_world_group()
    all_said = [torch.empty_like(own) for _ in range(workers.world_size)]
    torch.distributed.all_gather(all_said, own, group=workers.cpu_group)
    first = next((one for one in all_said if one[0]), None)
    if first is None:
        return
    undo()
    parallel = engine.parallel_config
    if parallel.rank == parallel.world_size - 1:
        raise TransferBroken(bytes(first[first != 0].tolist()).decode(errors="replace"))


def _rank(engine: Any, meeting: Meeting) -> int:
    """This worker's rank among all, numbered as vLLM does for NCCL."""
    parallel = engine.parallel_config
    return int(meeting.first + parallel.data_parallel_index * parallel.world_size + parallel.rank)


WeightTransferEngineFactory.register_engine("sieve-gloo", GlooTransfer)
WeightTransferEngineFactory.register_engine("sieve-nccl", NcclTransfer)
