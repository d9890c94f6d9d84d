"""The configuration section `actor.vllm`. Reads nothing, starts nothing, and imports no vLLM."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from actor.engines.vllm.arguments import refuse_owned
from broker.settings import Section


class VllmSettings(Section):
    """How actors with `engine: vllm` run it."""

    arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments of vLLM's engine by its own names, passed through: `tensor_parallel_size: 2`, `max_model_len: 4096`."""
    clear_cache: bool = True
    """With new weights, compute keys and values of running completions again. False is faster: what was cached stays
    that of the weights which made it, later log-probs belong to no single version, and they are still what was
    recorded: the behaviour's."""

    @field_validator("arguments")
    @classmethod
    def _ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        refuse_owned(value)
        return value
