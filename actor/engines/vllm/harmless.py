"""The arguments of vLLM's engine under which it samples the policy itself, with any value or with those named.

A list of what is known, not of what is forbidden: an argument that is missing here, also one that a later vLLM adds, is
taken to change what is sampled and needs `actor.vllm.unsafe_arguments`. An argument belongs here if it decides only
where or in what portions the same numbers are computed (up to the rounding of another kernel, which canaries bound),
how much is computed at once, or what is reported. Pure; vLLM is not imported.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

ANY: frozenset[Any] = frozenset()
"""Stands for: whatever the value."""

_LENGTH_AND_MEMORY = (
    "max_model_len",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "num_gpu_blocks_override",
    "block_size",
    "enable_prefix_caching",
    "disable_hybrid_kv_cache_manager",
)
_PORTIONS = (
    "max_num_batched_tokens",
    "max_num_scheduled_tokens",
    "max_num_active_seqs",
    "enable_chunked_prefill",
    "long_prefill_token_threshold",
    "long_prefill_token_threshold_adaptive",
    "prefill_schedule_interval",
    "scheduler_reserve_full_isl",
    "watermark",
    "async_scheduling",
    "stream_interval",
    "disable_cascade_attn",
    "seed",
    "use_fp64_gumbel",
)
_PLACEMENT = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "data_parallel_size_local",
    "data_parallel_address",
    "data_parallel_rpc_port",
    "enable_expert_parallel",
    "master_addr",
    "master_port",
    "nnodes",
    "node_rank",
    "device_ids",
    "numa_bind",
    "numa_bind_nodes",
    "numa_bind_cpus",
    "distributed_timeout_seconds",
    "cpu_distributed_timeout_seconds",
    "disable_custom_all_reduce",
    "disable_nccl_for_dp_synchronization",
    "max_parallel_loading_workers",
    "fully_sharded_loras",
)
_COMPILATION = (
    "enforce_eager",
    "cudagraph_capture_sizes",
    "max_cudagraph_capture_size",
    "specialize_active_lora",
)
_TEXT_ONLY = ("language_model_only", "limit_mm_per_prompt", "skip_mm_profiling")
_REPORTS = (
    "aggregate_engine_logging",
    "collect_detailed_traces",
    "cudagraph_metrics",
    "custom_histogram_buckets",
    "enable_layerwise_nvtx_tracing",
    "enable_log_requests",
    "enable_logging_iteration_details",
    "enable_mfu_metrics",
    "jit_monitor_verbose",
    "kv_cache_metrics",
    "kv_cache_metrics_sample",
    "log_config_file",
    "log_level",
    "otlp_traces_endpoint",
    "profiler_config",
    "ray_workers_use_nsight",
    "safetensors_prefetch_block_size",
    "safetensors_prefetch_num_threads",
    "show_hidden_metrics_for_version",
    "use_tqdm_on_load",
)

_VALUES: dict[str, frozenset[Any]] = {
    # Those that read the safetensors at model.path; `dummy` invents weights, `pt` unpickles, others read other files.
    "load_format": frozenset({"auto", "hf", "safetensors", "fastsafetensors", "runai_streamer"}),
    "safetensors_load_strategy": frozenset({"lazy", "eager", "prefetch"}),
    "kv_cache_dtype": frozenset({"auto"}),
    "mamba_cache_dtype": frozenset({"auto"}),
    "mamba_ssm_cache_dtype": frozenset({"auto"}),
    "lora_dtype": frozenset({"auto"}),
    "scheduling_policy": frozenset({"fcfs", "priority"}),
    "performance_mode": frozenset({"balanced", "interactivity", "throughput"}),
    "optimization_level": frozenset({0, 1, 2, 3}),
    # Not `external_launcher`, whose workers belong to another process, and not a class.
    "distributed_executor_backend": frozenset({"ray", "mp", "uni"}),
    "data_parallel_backend": frozenset({"ray", "mp"}),
    # Not xxhash: two prefixes of one hash would share keys and values.
    "prefix_caching_hash_algo": frozenset({"sha256", "sha256_cbor"}),
    "model_impl": frozenset({"auto", "vllm", "transformers"}),
    # Kernels of exact attention; others quantise keys and values, leave some out, or are classes of the user.
    "attention_backend": frozenset(
        {
            "CPU_ATTN", "FLASH_ATTN", "FLASHINFER", "FLEX_ATTENTION", "ROCM_ATTN", "TRITON_ATTN",
            "CUTLASS_MLA", "FLASH_ATTN_MLA", "FLASHINFER_MLA", "FLASHMLA", "TRITON_MLA",
        }
    ),
    "quantization": frozenset({None}),
    "speculative_config": frozenset({None}),
    "kv_transfer_config": frozenset({None}),
    "kv_offloading_size": frozenset({None}),
}  # fmt: skip

_COMPILATION_CONFIG = frozenset(
    {
        "mode",
        "cudagraph_mode",
        "cudagraph_capture_sizes",
        "max_cudagraph_capture_size",
        "cudagraph_num_of_warmups",
        "cudagraph_specialize_lora",
        "compile_sizes",
        "cache_dir",
        "compile_cache_save_format",
        "debug_dump_path",
    }
)
"""Keys of `compilation_config`: when and for which sizes to compile. Others replace kernels, passes or the compiler."""

HARMLESS: dict[str, frozenset[Any]] = {
    **dict.fromkeys(
        (*_LENGTH_AND_MEMORY, *_PORTIONS, *_PLACEMENT, *_COMPILATION, *_TEXT_ONLY, *_REPORTS), ANY
    ),
    **_VALUES,
    "compilation_config": _COMPILATION_CONFIG,
}  # fmt: skip
"""Argument → the values it may have (ANY: all), or of `compilation_config` the keys."""


def is_harmless(name: str, value: Any) -> bool:
    """Whether vLLM samples the policy itself with `value` for its engine's argument `name`."""
    if name not in HARMLESS:
        return False
    allowed = HARMLESS[name]
    if allowed is ANY:
        return True
    if name == "compilation_config":
        return isinstance(value, Mapping) and allowed.issuperset(value)
    return any(type(value) is type(one) and value == one for one in allowed)


def refuse_harmful(arguments: Mapping[str, Any], owned: Collection[str]) -> None:
    """Raise ValueError for the first argument that is not known to be harmless; `owned` are refused elsewhere."""
    for name, value in arguments.items():
        if name in owned or is_harmless(name, value):
            continue
        near = difflib.get_close_matches(name, HARMLESS, n=1, cutoff=0.8)
        guess = f"did you mean {near[0]}? " if near and name not in HARMLESS else ""
        raise ValueError(
            f"actor.vllm.arguments.{name}{_limit(name, value)} is not known to leave the policy as it is: {guess}"
            f"remove it, or move it to actor.vllm.unsafe_arguments, which are named in the log and in the run's "
            f"identity"
        )


def refuse_needless(unsafe: Mapping[str, Any]) -> None:
    """Raise ValueError for the first of `actor.vllm.unsafe_arguments` that is harmless: it would alter the run's
    identity for nothing."""
    for name, value in unsafe.items():
        if is_harmless(name, value):
            raise ValueError(
                f"actor.vllm.unsafe_arguments.{name} = {value!r} does not change what is sampled: move it to "
                f"actor.vllm.arguments"
            )


def _limit(name: str, value: Any) -> str:
    """The value and what would pass, for the message."""
    allowed = HARMLESS.get(name)
    if not allowed:
        return ""
    if name == "compilation_config":
        other = sorted(set(value) - allowed) if isinstance(value, Mapping) else [str(value)[:40]]
        return f" with {', '.join(map(str, other))[:200]} (harmless: {', '.join(sorted(allowed))})"
    named = sorted("null" if one is None else str(one) for one in allowed)
    return f" = {value!r} (harmless: {', '.join(named)})"
