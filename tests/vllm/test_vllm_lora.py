"""LoRA mode: the base model stays, a version is its adapters, swapped under running completions."""

from __future__ import annotations

import copy
import itertools
import json

import numpy as np
import pytest
import torch

pytest.importorskip("vllm.v1", reason="make test-vllm installs it")

from safetensors.torch import save_file

from actor.engine import WeightsUnusable
from broker.settings import LoraSettings
from tests.actor.tiny_llama import ragged, reference, ticket
from tests.vllm.served_llama import VOCABULARY, drain, save, served_llama

TOLERANCE = 1e-4  # float32, per token
LORA = LoraSettings(rank=4, alpha=8.0, targets=("q_proj", "v_proj", "down_proj"))


def adapters(base, seed):
    """Seeds > 0: random A and B; 0: what training starts from, B = 0. PEFT's names."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in base.named_modules():
        if name.endswith(LORA.targets):
            rows, columns = module.weight.shape
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(LORA.rank, columns, generator=draw) * 0.3
            tensors[f"base_model.model.{name}.lora_B.weight"] = (
                torch.randn(rows, LORA.rank, generator=draw) * 0.3 * bool(seed)
            )
    return tensors


def merged(base, tensors):
    """W + scale · B · A: what the adapters mean."""
    model = copy.deepcopy(base)
    for name, module in model.named_modules():
        key = f"base_model.model.{name}.lora_A.weight"
        if key in tensors:
            module.weight.data += LORA.scale * tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
    return model


def publish(tensors, directory):
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": LORA.rank, "lora_alpha": LORA.alpha, "bias": "none",
        "target_modules": list(LORA.targets), "inference_mode": True, "base_model_name_or_path": "",
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def test_adapters_change_in_flight_and_the_spans_tell_which(open_vllm, tmp_path):
    base = served_llama(0)
    path = save(base, tmp_path / "base")
    sets = [adapters(base, seed) for seed in range(3)]
    directories = [publish(tensors, tmp_path / f"v{index}") for index, tensors in enumerate(sets)]
    models = [merged(base, tensors) for tensors in sets]
    sampler = open_vllm(path, max_batch=16, lora=LORA)
    sampler.load(0, directories[0])
    prompts = ragged(14, seed=4, vocabulary=VOCABULARY)
    for question in prompts:
        sampler.submit(ticket(question.index, n=4), question)
    done = []
    for version in itertools.count(1):
        done += sampler.poll(0.1)
        if not sampler.in_flight:
            break
        sampler.load(version, directories[version % 3])
    assert sorted((one.group_id, one.idx) for one in done) == sorted(
        (f"0:{p.index}", i) for p in prompts for i in range(4)
    )
    assert sum(len(one.spans) > 1 for one in done) >= 4
    for one in done:
        for used, start, end in one.spans:
            expected = reference(models[used % 3], prompts[one.prompt], one.ids)
            np.testing.assert_allclose(one.sampler_logprobs[start:end], expected[start:end], atol=TOLERANCE)
    for one in (one for one in done if one.spans[0][0] == 0):  # version 0 is the base
        end = one.spans[0][2]
        np.testing.assert_allclose(
            one.sampler_logprobs[:end], reference(base, prompts[one.prompt], one.ids)[:end], atol=TOLERANCE
        )

    wrong = dict(sets[1])
    name = next(iter(wrong))
    half = {key: tensor for key, tensor in wrong.items() if key != name}
    nan = {key: tensor * float("nan") if key == name else tensor for key, tensor in wrong.items()}
    shape = {key: torch.zeros(4, 65) if key == name else tensor for key, tensor in wrong.items()}
    for number, (tensors, message) in enumerate(
        [(half, "not one half of an adapter"), (nan, "not finite"), (shape, r"is \(4, 65\), its matrix at model.path")]
    ):
        with pytest.raises(WeightsUnusable, match=message):
            sampler.check(publish(tensors, tmp_path / f"wrong{number}"))
    sampler.submit(ticket(99, n=4, version=0), prompts[0])
    for one in drain(sampler):
        expected = reference(models[sampler.version % 3], prompts[0], one.ids)
        np.testing.assert_allclose(one.sampler_logprobs, expected, atol=TOLERANCE)
