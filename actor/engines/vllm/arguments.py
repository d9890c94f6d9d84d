"""Which arguments vLLM's engine gets: the user's, all passed through, and those that follow from the run.

Pure: vLLM's names are given, not imported.
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
    "weight_transfer_config": "it follows from weights.transport",
    "worker_extension_cls": "sieve's own brings the weights in",
    "disable_log_stats": "the actor metrics with them",
}
"""Arguments that are not the user's to give, and why."""

EXTENSIONS = ("actor.engines.vllm.worker.Extension", "actor.engines.vllm.worker_broadcast.Extension")
"""What every worker imports: without broadcasts, and with them."""

CPU = {"enforce_eager": True, "kv_cache_memory_bytes": 1 << 30, "block_size": 32}
"""Defaults on a CPU, which serves tests and trials: start in seconds, share a machine with other services (vLLM's own
share of its memory is nine tenths), and let short prompts share their keys and values (vLLM's own block is 128)."""

WHOLE = "enable_chunked_prefill"
"""Off on a CPU. Of a prompt that is computed in parts vLLM's first model runner takes each part's draw back, which a
CPU's generator cannot do: a completion with a seed of its own would end the engine."""


def refuse_owned(arguments: Collection[str]) -> None:
    """Raises ValueError with the reason for the first argument that sieve sets itself."""
    for name in arguments:
        if name in OWNED:
            raise ValueError(f"actor.vllm.arguments.{name} is set by sieve: {OWNED[name]}; remove it")


def refuse_unknown(arguments: Collection[str], known: Collection[str]) -> None:
    """Raises ValueError for the first argument that is not one of vLLM's own, with the nearest that is."""
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name, [one for one in known if one not in OWNED], n=1)
            hint = f"did you mean {near[0]}?" if near else "see `vllm serve --help=all`"
            raise ValueError(f"actor.vllm.arguments.{name} is no engine argument of the installed vLLM; {hint}")


def engine(
    given: Mapping[str, Any],
    model: ModelSettings,
    *,
    transport: str,
    max_batch: int,
    prefill_tokens: int,
    cpu: bool,
    known: Collection[str],
) -> dict[str, Any]:
    """Everything the engine is opened with.

    Args:
        given: actor.vllm.arguments.
        transport: weights.transport.
        max_batch: actor.max_batch.
        prefill_tokens: actor.prefill_tokens.
        cpu: whether the installed vLLM runs on a CPU.
        known: the names of its engine's arguments.

    Raises:
        ValueError: as `refuse_owned` and `refuse_unknown`, or for what a CPU cannot do.
    """
    if transport == "nccl" and cpu:
        raise ValueError("weights.transport = nccl, but the installed vLLM runs on a CPU: use files, or gloo")
    refuse_owned(given)
    refuse_unknown(given, known)
    if cpu and given.get(WHOLE):
        raise ValueError(
            f"actor.vllm.arguments.{WHOLE} = true, but on a CPU vLLM cannot compute the prompt of a completion with "
            f"its own seed in parts; remove it"
        )
    if cpu and given.get("pipeline_parallel_size", 1) != 1:
        raise ValueError(
            "actor.vllm.arguments.pipeline_parallel_size: the installed vLLM runs on a CPU, where it ends at the first "
            "token of a pipeline; use tensor_parallel_size or data_parallel_size"
        )
    own: dict[str, Any] = {
        "model": str(model.path),
        "skip_tokenizer_init": True,
        "served_model_name": "policy",
        "dtype": model.dtype,
        "max_num_seqs": max_batch,
        "generation_config": "vllm",
        "logprobs_mode": "raw_logprobs",
        "worker_extension_cls": EXTENSIONS[transport != "files"],
    }
    if model.lora is None:
        own["weight_transfer_config"] = {"backend": f"sieve-{transport}"}
    else:
        own |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank_slot(model.lora.rank)}
    if cpu:  # where vLLM's own default for the tokens of a step fits the longest prompt whole
        defaults: dict[str, Any] = CPU | {WHOLE: False}
    else:
        defaults = {"max_num_batched_tokens": max(prefill_tokens, max_batch)}
    return {**defaults, **given, **own}


def rank_slot(rank: int) -> int:
    """The smallest of vLLM's LoRA sizes that `rank` (1 … 512) fits."""
    return next(size for size in (1, 8, 16, 32, 64, 128, 256, 320, 512) if size >= rank)
