"""What the installed vLLM may be given, and what installed packages may put into it. No engine is started."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm.v1", reason="make test-vllm installs it")

from pydantic import ValidationError
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.sample.logits_processor import _load_logitsprocs_plugins

from actor.engine import ArgumentRefused
from actor.engines.factory import open_engine
from actor.engines.vllm.arguments import OWNED
from actor.engines.vllm.harmless import ANY, HARMLESS, is_harmless
from actor.engines.vllm.plugins import loaded_by_vllm, refuse_plugins
from actor.settings import ActorSettings
from tests.actor.actor_process import tree
from tests.vllm.served_llama import EOS, MAX_NEW, spec

FIELDS = {field.name: field for field in dataclasses.fields(AsyncEngineArgs)}
OTHERS = sorted(set(FIELDS) - set(HARMLESS) - set(OWNED))
CHANGES_WHAT_IS_SAMPLED: dict[str, Any] = {
    "additional_config": {"a": 1},
    "allow_deprecated_quantization": True,
    "attention_backend": "CUSTOM",
    "attention_config": {"backend": "FLASHINFER"},
    "code_revision": "x",
    "compilation_config": {"mode": 3, "pass_config": {"fuse_norm_quant": True}},
    "config_format": "mistral",
    "cpu_offload_gb": 4,
    "diffusion_config": {},
    "distributed_executor_backend": "external_launcher",
    "enable_eplb": True,
    "hf_config_path": "/elsewhere",
    "hf_overrides": {"rope_theta": 1e3},
    "ignore_patterns": ["model-1.safetensors"],
    "kernel_config": {"moe_backend": "cutlass"},
    "kv_cache_dtype": "fp8_e5m2",
    "kv_offloading_backend": "native",
    "kv_offloading_size": 1.0,
    "kv_sharing_fast_prefill": True,
    "kv_transfer_config": {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"},
    "load_format": "dummy",
    "lora_dtype": "float16",
    "lora_target_modules": ["q_proj"],
    "mamba_cache_dtype": "float16",
    "model_class_overrides": {"LlamaForCausalLM": "a:B"},
    "model_impl": "terratorch",
    "model_loader_extra_config": {"a": 1},
    "prefix_caching_hash_algo": "xxhash",
    "quantization": "fp8",
    "quantization_config": {},
    "safetensors_load_strategy": "torchao",
    "scheduler_cls": "a.B",
    "spec_method": "ngram",
    "speculative_config": {"method": "ngram", "num_speculative_tokens": 3},
    "worker_cls": "a.B",
}


def settings(**vllm: Any) -> ActorSettings:
    return ActorSettings.model_validate({"engine": "vllm", "vllm": vllm})


def test_every_argument_of_this_vllm_is_harmless_or_set_by_sieve_or_unsafe() -> None:
    assert not set(HARMLESS) - set(FIELDS), "vLLM has no such arguments"
    assert not set(OWNED) - set(FIELDS)
    assert not set(HARMLESS) & set(OWNED)
    assert set(CHANGES_WHAT_IS_SAMPLED) <= set(FIELDS)
    for name in [*OTHERS, "an_argument_of_a_later_vllm"]:
        for value in (None, True, 1, "auto", {}):
            assert not is_harmless(name, value)
    for name in OTHERS:
        with pytest.raises(ValidationError, match=rf"arguments\.{name} is not known to leave the policy as it is"):
            settings(arguments={name: 1})


def test_a_default_of_vllm_is_harmless_where_values_matter() -> None:
    for name, allowed in HARMLESS.items():
        field = FIELDS[name]
        if allowed is ANY or field.default is dataclasses.MISSING or field.default is None:
            continue
        default = getattr(field.default, "value", field.default)  # of an enumeration
        assert is_harmless(name, default), name


@pytest.mark.parametrize("name", sorted(CHANGES_WHAT_IS_SAMPLED))
def test_what_changes_the_samples_needs_the_unsafe_key_and_is_named_in_the_identity(name: str) -> None:
    given = {name: CHANGES_WHAT_IS_SAMPLED[name]}
    with pytest.raises(ValidationError, match=rf"{name}.* is not known to leave the .*actor.vllm.unsafe_arguments"):
        settings(arguments=given)
    (setting,) = settings(unsafe_arguments=given).vllm.unsafe
    assert setting.startswith(f"actor.vllm.unsafe_arguments.{name}=")


def test_an_actor_with_other_unsafe_settings_than_its_run_is_refused(model_path: Path, tmp_path: Path) -> None:
    unsafe = {"unsafe_arguments": {"hf_overrides": {"rms_norm_eps": 0.1}}}
    run = spec((EOS,), MAX_NEW)
    with pytest.raises(ArgumentRefused, match=r"hf_overrides=.*the run was opened with nothing unsafe: .*identity"):
        open_engine(tree(tmp_path, model_path, engine="vllm", vllm=unsafe), run, "test")
    other = run.model_copy(update={"unsafe": settings(**unsafe).vllm.unsafe})
    with pytest.raises(ArgumentRefused, match=r"would sample with nothing unsafe, and the run was .*hf_overrides="):
        open_engine(tree(tmp_path, model_path, engine="vllm"), other, "test")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that adds a processor of logits and a general plugin to vLLM."""
    (tmp_path / "shady.py").write_text("class Top1: ...\ndef patch(): ...\n")
    info = tmp_path / "shady-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shady\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[vllm.logits_processors]\ntop1 = shady:Top1\n[vllm.general_plugins]\npatch = shady:patch\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)


def test_only_vllms_own_plugins_are_here() -> None:
    assert loaded_by_vllm() == {}
    refuse_plugins([])


@pytest.mark.usefixtures("package")
def test_what_an_installed_package_adds_to_vllm_is_refused_or_listed(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [one.__name__ for one in _load_logitsprocs_plugins()] == ["Top1"]  # vLLM would sample through it
    processor, general = "vllm.logits_processors:top1", "vllm.general_plugins:patch"
    assert loaded_by_vllm() == {processor: "shady:Top1", general: "shady:patch"}
    with pytest.raises(ArgumentRefused, match=r"registers shady:patch for vllm\.general_plugins.*set VLLM_PLUGINS"):
        open_engine(tree(tmp_path / "run", model_path, engine="vllm"), spec((EOS,), MAX_NEW), "test")
    monkeypatch.setenv("VLLM_PLUGINS", "")
    with pytest.raises(ValueError, match=r"registers shady:Top1 .*uninstall that package, or list vllm.logits_proc"):
        refuse_plugins([])
    refuse_plugins([processor])
    assert settings(unsafe_plugins=[processor]).vllm.unsafe == (f"actor.vllm.unsafe_plugins.{processor}=true",)
    with pytest.raises(ValueError, match=r"general_plugins:patch, which vLLM would not load here .*top1"):
        refuse_plugins([processor, general])
