"""Settings of the actor: which engine samples, on what, and how much at once. Reads nothing, starts nothing."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import Field, model_validator

from actor.engines.openai.settings import OpenAISettings
from actor.engines.vllm.settings import VllmSettings
from broker.settings import BrokerSettings, MetricsSettings, ModelSettings, RunSettings, Section, WeightsSettings


class ActorSettings(Section):
    """How one actor process samples."""

    engine: Literal["torch", "vllm", "openai"] = "torch"
    """`torch`: the transformers model itself with continuous batching; runs anywhere torch runs. `vllm`: vLLM, for
    everything that is larger than an example. `openai`: vLLM servers that run elsewhere, through HTTP."""
    vllm: VllmSettings = VllmSettings()
    openai: OpenAISettings = OpenAISettings()
    replicas: Annotated[int, Field(ge=0, le=4096)] = 1
    """Actor processes the launcher keeps alive; more may join by hand at any time."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")] = "auto"
    """`auto` takes the first CUDA device, else the CPU."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 1
    """CPU threads of one actor process; 0 leaves torch's own choice (all cores, which replicas then fight over)."""
    max_batch: Annotated[int, Field(ge=1, le=65536)] = 128
    """Completions sampled side by side. Their KV cache must fit: layers · 2 · KV heads · head size · length each."""
    prefill_tokens: Annotated[int, Field(ge=1, le=1 << 24)] = 8192
    """Prompt tokens (padding included) of one prefill pass: bounds its activation memory. vLLM on a CPU has its own
    bound (actor.vllm.arguments.max_num_batched_tokens)."""
    offer_seconds: Annotated[float, Field(gt=0, le=60)] = 0.02
    """Finished completions wait at most this long, or one decoding step, for others to share a round trip with."""
    grace_seconds: Annotated[float, Field(ge=0, le=3600)] = 20.0
    """After SIGTERM, running completions may finish for this long; what is left is handed back."""

    @model_validator(mode="after")
    def _one_server_each(self) -> ActorSettings:
        servers = len(self.openai.urls)
        if self.engine == "openai" and (not servers or self.replicas > servers):
            raise ValueError(
                f"actor.engine = openai with actor.replicas = {self.replicas} and {servers} in actor.openai.urls: each "
                f"actor needs a server of its own; add urls or lower actor.replicas (actor.max_batch keeps one server "
                f"busy)"
            )
        return self


class ActorConfig(Protocol):
    """What the actor reads of the configuration tree."""

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
