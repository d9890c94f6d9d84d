"""The configuration section `actor.vllm`; vLLM is not imported."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field, model_validator

from actor.engines.vllm.arguments import OWNED, refuse_owned
from actor.engines.vllm.harmless import refuse_harmful, refuse_needless
from broker.settings import Section


class VllmSettings(Section):
    """Settings of the vLLM engine."""

    arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments of vLLM's engine by vLLM's names, passed through: `tensor_parallel_size: 2`, `max_model_len: 4096`.
    Only those that are known to leave the policy as it is."""
    unsafe_arguments: dict[str, Any] = Field(default_factory=dict)
    """All other arguments of vLLM's engine: with them it may sample something other than the policy. They are part of
    the run's identity, and every actor logs them."""
    unsafe_plugins: list[str] = Field(default_factory=list)
    """Entry points of other packages that vLLM may load, `<group>:<name>`. They run inside vLLM and can change what it
    samples; those not named here are refused. Part of the run's identity, as above."""
    clear_cache: bool = True
    """Whether keys and values of running completions are recomputed after new weights are loaded. False is faster: what
    was in flight keeps those of the weights before, and its later log-probs belong to no single version; they are still
    those that were sampled from. Completions that begin after the update use nothing of earlier weights."""

    @model_validator(mode="after")
    def _ours(self) -> VllmSettings:
        refuse_owned(self.arguments)
        refuse_owned(self.unsafe_arguments, "unsafe_arguments")
        refuse_harmful(self.arguments, OWNED)
        refuse_needless(self.unsafe_arguments)
        return self

    @property
    def unsafe(self) -> tuple[str, ...]:
        """What may make this engine sample something other than the policy, `<key>=<value as JSON>` each, sorted."""
        arguments = {f"actor.vllm.unsafe_arguments.{name}": value for name, value in self.unsafe_arguments.items()}
        plugins = {f"actor.vllm.unsafe_plugins.{name}": True for name in self.unsafe_plugins}
        return tuple(
            f"{key}={json.dumps(value, sort_keys=True, default=str)}"
            for key, value in sorted({**arguments, **plugins}.items())
        )
