"""The part that runs inside vLLM's worker processes, which import it by name: loading a version's files.

It is a registered weight-transfer engine, driven by vLLM's start, update and finish calls while generation is paused.
The files were verified and checked before; a failure here leaves a model that is half one version and half another,
and ends the engine.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

from broker.model_files import shards

BACKEND = "sieve-files"
EXTENSION = "actor.engines.vllm.worker.Extension"
ACTOR = "SIEVE_ACTOR_PROCESS"
"""Environment variable with `<host>/<pid>` of the actor; vLLM's processes on its machine end when it ends."""


class Extension:
    """Adds no methods to a worker; that vLLM is given its name makes every worker import this module."""


@dataclass
class NoInit(WeightTransferInitInfo):  # type: ignore[misc]
    """No parameters: files need no rendezvous."""


@dataclass
class Directory(WeightTransferUpdateInfo):  # type: ignore[misc]
    """A verified version, in a directory that every worker can read."""

    directory: str


class FileTransfer(WeightTransferEngine[NoInit, Directory]):  # type: ignore[misc]
    """Reads a version's safetensors; vLLM shards, fuses and packs them for its kernels, layer by layer."""

    init_info_cls = NoInit
    update_info_cls = Directory

    def init_transfer_engine(self, init_info: NoInit) -> None:
        """Nothing to do."""

    def start_weight_update(self) -> None:
        # model.load_weights alone would leave the packed matrices of a CPU unchanged, with or without an error.
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if not current_platform.is_cpu():  # a CPU has nothing to synchronise
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: Directory) -> None:
        self.model.load_weights(_tensors(Path(update_info.directory)))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        repack(self.model)

    def shutdown(self) -> None:
        """Nothing to do."""


def repack(model: torch.nn.Module) -> None:
    """Pack a tied output matrix again.

    On a CPU vLLM multiplies with a packed copy of the output matrix, which a reload renews only if the matrix has its
    own tensors: a tied one would keep the previous weights."""
    if not current_platform.is_cpu():
        return
    for layer in model.modules():
        if isinstance(layer, VocabParallelEmbedding) and hasattr(layer, "cpu_linear"):
            layer.quant_method.process_weights_after_loading(layer)


def _tensors(directory: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in shards(directory):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 -- not a mapping
                yield name, file.get_tensor(name)


def _follow(actor: int) -> None:
    """End this process and the engine core that it belongs to when the actor ends without closing them."""
    watched = os.pidfd_open(actor)
    core = os.getppid()

    def wait() -> None:
        select.select([watched], [], [])
        if core not in (actor, 1):
            os.kill(core, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="follow-actor", daemon=True).start()


# This logger warns at every version about layers that never have tensors (rotary embeddings); a version that lacks
# tensors has been refused before.
logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
WeightTransferEngineFactory.register_engine(BACKEND, FileTransfer)
_host, _, _pid = os.environ.get(ACTOR, "").rpartition("/")
if _host == socket.gethostname() and int(_pid) != os.getpid():
    _follow(int(_pid))
