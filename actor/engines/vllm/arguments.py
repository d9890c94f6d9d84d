"""The arguments of vLLM's engine: those of the configuration, passed through, and those that sieve sets.

Which of the first leave the policy as it is stands in harmless.py. Pure: the names that vLLM knows are passed in, and
vLLM is not imported.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from broker.settings import ModelSettings

OWNED = {
    "model": "it is model.path",
    "model_weights": "it is model.path",
    "tokenizer": "it is the one at model.path",
    "skip_tokenizer_init": "prompts arrive as token ids",
    "trust_remote_code": "code that comes with a model is never run",
    "served_model_name": "it labels vLLM's metrics, which stay comparable between actors",
    "dtype": "it is model.dtype, one precision for sampler and learner",
    "max_num_seqs": "it is actor.max_batch",
    "generation_config": "its sampling defaults would replace the policy's own distribution",
    "override_generation_config": "its sampling defaults would replace the policy's own distribution",
    "logits_processors": "they would sample from something other than the policy",
    "watermark_config": "a watermark would sample from something other than the policy",
    "logprobs_mode": "the recorded log-probs are those of the policy itself (raw_logprobs)",
    "runner": "actors generate",
    "convert": "actors generate",
    "enable_lora": "it follows from model.lora",
    "max_loras": "it follows from model.lora",
    "max_lora_rank": "it follows from model.lora",
    "max_cpu_loras": "it follows from model.lora",
    "weight_transfer_config": "it follows from weights.broadcast",
    "worker_extension_cls": "sieve's own class loads the weights",
    "disable_log_stats": "the actor's metrics are made of these statistics",
}
"""Arguments that the user must not set, and the reasons."""

EXTENSIONS = {
    "none": "actor.engines.vllm.worker.Extension",
    "gloo": "actor.engines.vllm.worker_broadcast.Extension",
    "nccl": "actor.engines.vllm.worker_broadcast.Extension",
}
"""The class that every worker imports, by weights.broadcast."""
BACKENDS = {"none": "sieve-files", "gloo": "sieve-gloo", "nccl": "sieve-nccl"}
"""The weight-transfer engine of every worker, by weights.broadcast; registered by what EXTENSIONS names."""

CPU = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 30, "block_size": 32}
"""Defaults on a CPU, for tests and trials: a start within seconds, little memory (vLLM would take nine tenths of the
machine's), and small blocks, so that short prompts can share their keys and values (vLLM's default is 128)."""

WHOLE = "enable_chunked_prefill"
"""Off on a CPU. For a prompt computed in chunks, vLLM's first model runner rewinds the random generator after each
chunk, which a CPU generator does not support: a completion with its own seed would end the engine."""


def refuse_owned(arguments: Collection[str], key: str = "arguments") -> None:
    """Raise ValueError for the first argument of `actor.vllm.<key>` that sieve sets itself, with the reason."""
    for name in arguments:
        if name in OWNED:
            raise ValueError(f"actor.vllm.{key}.{name} is set by sieve: {OWNED[name]}; remove it")


def refuse_unknown(arguments: Collection[str], known: Collection[str], key: str = "arguments") -> None:
    """Raise ValueError for the first argument of `actor.vllm.<key>` that vLLM does not have, with the nearest."""
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name, [one for one in known if one not in OWNED], n=1)
            hint = f"did you mean {near[0]}?" if near else "see `vllm serve --help=all`"
            raise ValueError(f"actor.vllm.{key}.{name} is not an engine argument of the installed vLLM; {hint}")


def engine(
    given: Mapping[str, Any],
    model: ModelSettings,
    *,
    unsafe: Mapping[str, Any],
    broadcast: str,
    max_batch: int,
    prefill_tokens: int,
    cpu: bool,
    known: Collection[str],
) -> dict[str, Any]:
    """All arguments that the engine is opened with.

    Args:
        given: actor.vllm.arguments.
        unsafe: actor.vllm.unsafe_arguments.
        broadcast: weights.broadcast.
        max_batch: actor.max_batch.
        prefill_tokens: actor.prefill_tokens.
        cpu: whether the installed vLLM runs on a CPU.
        known: the names of its engine's arguments.

    Raises:
        ValueError: as `refuse_unknown`, or for what a CPU cannot do.
    """
    if broadcast == "nccl" and cpu:
        raise ValueError("weights.broadcast = nccl, but the installed vLLM runs on a CPU: use none, or gloo")
    refuse_unknown(given, known)
    refuse_unknown(unsafe, known, "unsafe_arguments")
    if cpu and given.get(WHOLE):
        raise ValueError(
            f"actor.vllm.arguments.{WHOLE} = true, but on a CPU vLLM cannot compute the prompt of a completion with "
            "its own seed in chunks; remove it"
        )
    if cpu and given.get("pipeline_parallel_size", 1) != 1:
        raise ValueError(
            "actor.vllm.arguments.pipeline_parallel_size: the installed vLLM runs on a CPU, where it ends at the first "
            "token of a pipeline; use tensor_parallel_size or data_parallel_size"
        )
    own: dict[str, Any] = {
        "model": str(model.path),
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "served_model_name": "policy",
        "dtype": model.dtype,
        "max_num_seqs": max_batch,
        "generation_config": "vllm",
        "logprobs_mode": "raw_logprobs",
        "worker_extension_cls": EXTENSIONS[broadcast],
    }
    if model.lora is None:
        own["weight_transfer_config"] = {"backend": BACKENDS[broadcast]}
    else:
        own |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank_slot(model.lora.rank)}
    if cpu:  # there vLLM's default for the tokens of a step is enough for the longest prompt
        defaults: dict[str, Any] = CPU | {WHOLE: False}
    else:
        defaults = {"max_num_batched_tokens": max(prefill_tokens, max_batch)}
    return {**defaults, **given, **unsafe, **own}


def rank_slot(rank: int) -> int:
    """The smallest of vLLM's LoRA ranks that is at least `rank` (1 … 512)."""
    return next(size for size in (1, 8, 16, 32, 64, 128, 256, 320, 512) if size >= rank)
