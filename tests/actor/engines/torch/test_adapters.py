"""The torch engine with adapters, which are merged into the original weights each time, all or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from actor.engine import WeightsUnusable
from tests.actor.tiny_llama import drain, engine, llama, prompt, published, ragged, reference, ticket

TOLERANCE = 1e-4  # float32, per token
MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.v_proj")
RANK, ALPHA = 3, 6.0


def adapter(
    directory: Path, model: LlamaForCausalLM, seed: int, *, modules: tuple[str, ...] = MODULES, **config: Any
) -> dict[str, torch.Tensor]:
    """Write an adapter with random factors to `directory`; returns what it adds to each matrix."""
    draw = torch.Generator().manual_seed(seed)
    tensors, added = {}, {}
    for module in modules:
        rows, columns = model.get_submodule(module).weight.shape
        left, right = torch.randn(rows, RANK, generator=draw) * 0.2, torch.randn(RANK, columns, generator=draw) * 0.2
        tensors[f"base_model.model.{module}.lora_A.weight"] = right
        tensors[f"base_model.model.{module}.lora_B.weight"] = left
        added[f"{module}.weight"] = ALPHA / RANK * left @ right
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj"], **config}
    (directory / "adapter_config.json").write_text(json.dumps(values))
    return added


def plus(model: LlamaForCausalLM, added: dict[str, torch.Tensor]) -> LlamaForCausalLM:
    with torch.no_grad():
        for name, update in added.items():
            model.get_parameter(name).add_(update)
    return model


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.slow
def test_each_adapter_is_merged_into_the_original_weights(tmp_path: Path) -> None:
    """After many versions the first one gives bit for bit the same log-probs: no rounding errors accumulate."""
    model, prompts = llama(1), ragged(5)
    sampler, sequences = engine(model), [(np.array([3, 4, 5]), np.array([6, 7, 8, 9]))]
    bases = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = [plus(llama(1), adapter(tmp_path / f"v{seed}", llama(1), seed)) for seed in range(3)]
    firsts = []
    for version in range(9):
        sampler.load(version, tmp_path / f"v{version % 3}")
        if version % 3 == 0:
            firsts.append(sampler.score(sequences)[0])
        for question in prompts:
            sampler.submit(ticket(question.index, n=3, version=version), question)
        for one in drain(sampler):
            expected = reference(adapted[version % 3], prompts[one.prompt], one.ids)
            np.testing.assert_allclose(one.sampler_logprobs, expected, atol=TOLERANCE)
    assert all((score == firsts[0]).all() for score in firsts)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, bases[name])}
    assert changed == {f"{module}.weight" for module in MODULES}


def test_a_matrix_that_the_next_adapter_does_not_change_is_restored(tmp_path: Path) -> None:
    model = llama(1)
    sampler = engine(model)
    adapter(tmp_path / "all", model, 1)
    added = adapter(tmp_path / "one", model, 2, modules=MODULES[:1])
    sampler.load(0, tmp_path / "all")
    sampler.load(1, tmp_path / "one")
    wanted = plus(llama(1), added).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


def test_whole_weights_become_the_base_of_later_adapters(tmp_path: Path) -> None:
    model = llama(1)
    sampler = engine(model)
    added = adapter(tmp_path / "adapter", model, 1)
    sampler.load(0, tmp_path / "adapter")
    sampler.load(1, published(llama(2), tmp_path / "whole"))
    sampler.load(2, tmp_path / "adapter")
    wanted = plus(llama(2), added).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


def test_running_completions_continue_with_another_adapter(tmp_path: Path) -> None:
    sampler = engine(llama(1))
    adapted = [plus(llama(1), adapter(tmp_path / f"v{seed}", llama(1), seed)) for seed in range(2)]
    sampler.load(0, tmp_path / "v0")
    question = prompt([4, 9, 3])
    sampler.submit(ticket(0, n=8), question)
    done = [one for _ in range(3) for one in sampler.poll(0)]
    sampler.load(1, tmp_path / "v1")
    done += drain(sampler)
    assert {len(one.spans) for one in done} >= {2}
    for one in done:
        for version, start, end in one.spans:
            expected = reference(adapted[version], question, one.ids)[start:end]
            np.testing.assert_allclose(one.sampler_logprobs[start:end], expected, atol=TOLERANCE)


def spoil(directory: Path, damage: str) -> None:
    from safetensors.torch import load_file

    tensors = load_file(directory / "adapter_model.safetensors")
    name = f"base_model.model.{MODULES[2]}.lora_A.weight"
    if damage == "missing factor":
        del tensors[name]
    elif damage == "shape":
        tensors[name] = tensors[name][:, :-1].contiguous()
    elif damage == "nan":
        tensors[name][0, 0] = torch.nan
    elif damage == "integers":
        tensors[name] = torch.ones_like(tensors[name], dtype=torch.int8)
    elif damage == "unknown matrix":
        tensors = {key.replace("layers.1", "layers.7"): value for key, value in tensors.items()}
    elif damage == "another tensor":
        tensors["base_model.model.lm_head.weight"] = torch.zeros(2)
    save_file(tensors, directory / "adapter_model.safetensors")
    if damage == "truncated":
        (directory / "adapter_model.safetensors").write_bytes(b"x")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing factor", "v_proj lacks lora_A"),
        ("shape", r"v_proj has B .* and A .*, the matrix in the model at model\.path is"),
        ("nan", "v_proj has values that are not finite"),
        ("integers", r"lora_A\.weight is int8; publish weights as float32"),
        ("unknown matrix", "lacks a matrix of the model"),
        ("another tensor", "lm_head.*is not of the form"),
        ("truncated", "not readable as an adapter"),
    ],
)
def test_an_adapter_that_does_not_fit_changes_nothing(tmp_path: Path, damage: str, message: str) -> None:
    model = llama(1)
    sampler = engine(model)
    adapter(tmp_path / "good", model, 1)
    adapter(tmp_path / "bad", model, 2)
    spoil(tmp_path / "bad", damage)
    sampler.load(0, tmp_path / "good")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsUnusable, match=message):
        sampler.load(1, tmp_path / "bad")
    assert sampler.version == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "feature", [{"use_dora": True}, {"use_rslora": True}, {"bias": "all"}, {"rank_pattern": {"q_proj": 8}}]
)
def test_an_adapter_of_another_kind_is_refused(tmp_path: Path, feature: dict[str, Any]) -> None:
    model = llama(1)
    sampler = engine(model)
    adapter(tmp_path / "other", model, 1, **feature)
    with pytest.raises(WeightsUnusable, match=next(iter(feature))):
        sampler.load(0, tmp_path / "other")
