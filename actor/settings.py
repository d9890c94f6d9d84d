"""The configuration section `actor`: the engine, its device, and how much it samples at once."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import Field, model_validator

from actor.engines.openai.settings import OpenAISettings
from actor.engines.vllm.settings import VllmSettings
from broker.settings import BrokerSettings, MetricsSettings, ModelSettings, RunSettings, Section, WeightsSettings


class ActorSettings(Section):
    """Settings of one actor process."""

    engine: Literal["torch", "vllm", "openai"] = "torch"
    """The sampling engine. `torch`: a transformers model with continuous batching, on any device of torch. `vllm`:
    vLLM, for everything larger than an example. `openai`: vLLM servers that run elsewhere, over HTTP."""
    vllm: VllmSettings = VllmSettings()
    """Settings of the engine `vllm`."""
    openai: OpenAISettings = OpenAISettings()
    """Settings of the engine `openai`."""
    replicas: Annotated[int, Field(ge=0, le=4096)] = 1
    """Actor processes that the launcher keeps alive; more may be started by hand at any time."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")] = "auto"
    """The device of the torch engine; `auto` is the first CUDA device, else the CPU."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 1
    """CPU threads of one actor process; 0 leaves the choice to torch (all cores, for which replicas then compete)."""
    max_batch: Annotated[int, Field(ge=1, le=65536)] = 128
    """Completions sampled concurrently. Their KV cache must fit: layers · 2 · KV heads · head size · length each."""
    prefill_tokens: Annotated[int, Field(ge=1, le=1 << 24)] = 8192
    """Prompt tokens (padding included) of one prefill pass: bounds its activation memory. vLLM on a CPU has its own
    bound (actor.vllm.arguments.max_num_batched_tokens)."""
    offer_seconds: Annotated[float, Field(gt=0, le=60)] = 0.02
    """How long finished completions wait for others to share a round trip with (at least one decoding step)."""
    grace_seconds: Annotated[float, Field(ge=0, le=3600)] = 20.0
    """How long running completions may continue after SIGTERM; the tickets of the rest are released."""

    @model_validator(mode="after")
    def _one_server_each(self) -> ActorSettings:
        servers = len(self.openai.urls)
        if self.engine == "openai" and (not servers or self.replicas > servers):
            raise ValueError(
                f"actor.engine = openai with actor.replicas = {self.replicas} and {servers} in actor.openai.urls: each "
                "actor needs a server of its own; add urls or lower actor.replicas (one actor can keep a server busy: "
                "actor.max_batch)"
            )
        return self


class ActorConfig(Protocol):
    """The part of the configuration that the actor reads."""

    @property
    def run(self) -> RunSettings: ...
    @property
    def broker(self) -> BrokerSettings: ...
    @property
    def metrics(self) -> MetricsSettings: ...
    @property
    def model(self) -> ModelSettings: ...
    @property
    def weights(self) -> WeightsSettings: ...
    @property
    def actor(self) -> ActorSettings: ...
