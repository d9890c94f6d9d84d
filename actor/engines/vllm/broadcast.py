"""The vLLM engine's side of broadcasts: each of its workers is a rank, driven through vLLM's weight-transfer calls.

Over gloo the workers receive into host memory, then load while generation is paused. Over NCCL the tensors go into the
models as they arrive, so generation is paused all the time, and after a broadcast that broke off the engine has no
version.
"""

from __future__ import annotations

import time

from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest

from actor.engine import EngineError
from actor.engines.vllm.engine import CONTROL_SECONDS, VllmEngine
from actor.weights.checks import Header, VersionFiles
from broker.weights.broadcast import Communicator, Layout, Participant, TransferBroken


class VllmReceiver:
    """vLLM's Receiver (actor.weights.broadcast); `direct`: tensors go straight into the model (NCCL)."""

    def __init__(self, engine: VllmEngine, files: VersionFiles, *, direct: bool) -> None:
        self._engine, self._files, self._direct = engine, files, direct
        parallel = engine.llm.vllm_config.parallel_config
        self.ranks: int = parallel.world_size * parallel.data_parallel_size

    def join(self, communicator: Communicator, own: Participant) -> None:
        info = {
            "group": communicator.id,
            "first": own.first_rank,
            "world": communicator.world_size,
            "seconds": communicator.seconds,
            **communicator.rendezvous,
        }
        try:
            self._engine.run(
                self._engine.llm.init_weight_transfer_engine(WeightTransferInitRequest(info)),
                communicator.seconds + CONTROL_SECONDS,
                "vLLM's workers to meet the learner",
            )
        except EngineError:
            raise  # the workers did not keep their own deadline: the engine can no longer be used
        except Exception as error:
            raise TransferBroken(str(error)) from error

    def receive(self, version: int, layout: Layout, seconds: float) -> tuple[str, dict[str, float]]:
        sent = {one.name: Header(one.dtype, one.shape) for one in layout.tensors}
        self._files.check_headers(f"version {version} as it is sent", sent)
        begin = time.monotonic()
        if self._direct:
            bring, limit = (lambda: self._bring(version, layout, seconds)), seconds + CONTROL_SECONDS
            spent = self._engine.switch(version, bring, _broken, least_seconds=limit)
            received = 0.0
        else:
            try:
                self._engine.run(
                    self._fetch(layout, seconds),
                    seconds + CONTROL_SECONDS,
                    f"vLLM's workers to receive version {version}",
                )
            except EngineError:
                raise
            except Exception as error:
                raise _broken(error) from error
            received = time.monotonic() - begin
            spent = self._engine.switch(version, lambda: self._load(version))
        # With data parallelism these are the first engine's only; each worker has compared its own with the learner's.
        digests = self._engine.run(
            self._engine.llm.collective_rpc("received_digest"), CONTROL_SECONDS, "vLLM's workers to say what arrived"
        )
        return min(digests), spent | {"receive": received or spent["load"], "pause": spent["pause"] + received}

    def leave(self) -> None:
        self._engine.run(
            self._engine.llm.collective_rpc("leave_group"), CONTROL_SECONDS, "vLLM's workers to leave the group"
        )

    async def _fetch(self, layout: Layout, seconds: float) -> None:
        llm = self._engine.llm
        await llm.start_weight_update()
        await llm.update_weights(_request(layout=layout.model_dump_json(), seconds=seconds))

    async def _load(self, version: int) -> None:
        llm = self._engine.llm
        await llm.update_weights(_request(received=True))
        await llm.finish_weight_update(str(version))

    async def _bring(self, version: int, layout: Layout, seconds: float) -> None:
        llm = self._engine.llm
        await self._fetch(layout, seconds)
        await llm.finish_weight_update(str(version))


def _request(**update: object) -> WeightTransferUpdateRequest:
    return WeightTransferUpdateRequest(update_info=update)


def _broken(error: Exception) -> TransferBroken:
    return TransferBroken(str(error))
