"""The arguments of vLLM's engine: those passed through, refused, and set by sieve. No vLLM needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from actor.engines.vllm.arguments import OWNED, WHOLE, engine, rank_slot, refuse_unknown
from actor.settings import ActorSettings
from broker.settings import LoraSettings, ModelSettings

PIPELINE = "pipeline_parallel_size"
KNOWN = {*OWNED, "tensor_parallel_size", "max_model_len", "max_num_batched_tokens", "enforce_eager", WHOLE, PIPELINE}


def opened(arguments=None, lora=None, broadcast="none", *, unsafe=None, cpu=False, **actor):
    """The arguments that the engine is opened with under these settings."""
    vllm = {"arguments": arguments or {}, "unsafe_arguments": unsafe or {}}
    settings = ActorSettings.model_validate({"engine": "vllm", "vllm": vllm, **actor})
    return engine(
        settings.vllm.arguments,
        ModelSettings(path=Path("/m"), dtype="bfloat16", lora=lora),
        unsafe=settings.vllm.unsafe_arguments,
        broadcast=broadcast,
        max_batch=settings.max_batch,
        prefill_tokens=settings.prefill_tokens,
        cpu=cpu,
        known=KNOWN,
    )


def test_arguments_pass_through_and_those_of_the_run_are_added():
    given = {"tensor_parallel_size": 2, "max_model_len": 4096}
    arguments = opened(given, max_batch=64, cpu=False)
    assert arguments.items() >= given.items()
    assert (arguments["model"], arguments["dtype"], arguments["max_num_seqs"]) == ("/m", "bfloat16", 64)
    assert arguments["generation_config"] == "vllm" and arguments["logprobs_mode"] == "raw_logprobs"
    assert "enable_lora" not in arguments and "enforce_eager" not in arguments
    assert arguments["max_num_batched_tokens"] == 8192
    assert opened({"max_num_batched_tokens": 100}, cpu=False)["max_num_batched_tokens"] == 100


def test_a_cpu_has_defaults_that_can_be_overridden():
    assert opened(cpu=True)["enforce_eager"] is True
    assert opened({"enforce_eager": False}, cpu=True)["enforce_eager"] is False


def test_on_a_cpu_prompts_are_computed_whole():
    own = opened(cpu=True)
    assert own[WHOLE] is False and "max_num_batched_tokens" not in own
    with pytest.raises(ValueError, match=f"{WHOLE} = true, but on a CPU .*; remove it"):
        opened({WHOLE: True}, cpu=True)
    assert opened({WHOLE: True}, cpu=False)[WHOLE] is True


def test_a_pipeline_is_refused_where_vllm_runs_on_a_cpu():
    with pytest.raises(ValueError, match=r"ends at the first token of a pipeline; use tensor_parallel_size or"):
        opened({PIPELINE: 2}, cpu=True)
    assert opened({PIPELINE: 1}, cpu=True)[PIPELINE] == 1
    assert opened({PIPELINE: 2}, cpu=False)[PIPELINE] == 2


def test_nccl_is_refused_where_vllm_runs_on_a_cpu():
    with pytest.raises(ValueError, match=r"weights\.broadcast = nccl, but the installed vLLM runs on a CPU"):
        opened(broadcast="nccl", cpu=True)
    assert opened(broadcast="nccl", cpu=False)["weight_transfer_config"]["backend"]


def test_adapters_get_the_smallest_slot_that_fits_and_no_weight_transfer():
    arguments = opened(lora=LoraSettings(rank=20), cpu=False)
    assert (arguments["enable_lora"], arguments["max_lora_rank"]) == (True, 32)
    assert "weight_transfer_config" not in arguments
    assert [rank_slot(rank) for rank in (1, 8, 9, 512)] == [1, 8, 16, 512]


@pytest.mark.parametrize("name", sorted(OWNED))
def test_arguments_that_sieve_sets_are_refused_with_the_reason(name):
    with pytest.raises(ValidationError, match=f"actor.vllm.arguments.{name} is set by sieve: .*; remove it"):
        ActorSettings.model_validate({"vllm": {"arguments": {name: 1}}})


def test_an_unknown_name_is_refused_with_the_nearest_that_exists():
    with pytest.raises(ValueError, match=r"tensor_paralel_size is not an engine.* did you mean tensor_parallel_size\?"):
        refuse_unknown({"tensor_paralel_size": 2}, KNOWN)
    with pytest.raises(ValueError, match=r"xyzzy is not an engine argument .* see `vllm serve --help=all`"):
        refuse_unknown({"xyzzy": 2}, KNOWN)
