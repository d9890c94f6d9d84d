"""The configuration section `actor.vllm`; vLLM is not imported."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from actor.engines.vllm.arguments import refuse_owned
from broker.settings import Section


class VllmSettings(Section):
    """Settings of the vLLM engine."""

    arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments of vLLM's engine by vLLM's names, passed through: `tensor_parallel_size: 2`, `max_model_len: 4096`."""
    clear_cache: bool = True
    """Whether keys and values of running completions are recomputed after new weights are loaded. False is faster, but
    then keys and values of earlier weights stay in use, and later log-probs belong to no single version; they are still
    those that were sampled from."""

    @field_validator("arguments")
    @classmethod
    def _ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        refuse_owned(value)
        return value
