"""The checks of a version's files before a model is changed."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from actor.engine import WeightsUnusable
from actor.weights.checks import VersionFiles, headers


def tensors(**change):
    whole = {"model.embed.weight": torch.ones(6, 4), "model.layers.0.q_proj.weight": torch.ones(4, 4)}
    return {name: tensor for name, tensor in {**whole, **change}.items() if tensor is not None}


def directory(path, content, name="model.safetensors", **config):
    path.mkdir()
    save_file(content, path / name)
    if name == "adapter_model.safetensors":
        (path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}')
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_whole_sharded_and_cast_versions_are_accepted(tmp_path):
    files = VersionFiles(directory(tmp_path / "base", tensors()), adapters=False)
    files.check(directory(tmp_path / "same", {name: tensor.half() for name, tensor in tensors().items()}))
    sharded = directory(tmp_path / "shards", {"model.embed.weight": torch.zeros(6, 4)}, "model-1.safetensors")
    save_file({"model.layers.0.q_proj.weight": torch.zeros(4, 4)}, sharded / "model-2.safetensors")
    names = {"model.embed.weight": "model-1.safetensors", "model.layers.0.q_proj.weight": "model-2.safetensors"}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    files.check(sharded)
    assert headers(sharded) == {
        "model.embed.weight": ("float32", (6, 4)),
        "model.layers.0.q_proj.weight": ("float32", (4, 4)),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.embed.weight": torch.ones(7, 4)}, r"model.embed.weight is \(7, 4\), the model at model.path has \(6"),
        ({"model.embed.weight": None}, "model.embed.weight is missing"),
        ({"model.other": torch.ones(1)}, "model.other is not in the model"),
        ({"model.embed.weight": torch.full((6, 4), float("inf"))}, "model.embed.weight has values that are not finite"),
        ({"model.embed.weight": torch.ones(6, 4, dtype=torch.int8)}, "model.embed.weight is int8; publish weights as"),
        ({"model.embed.weight": torch.ones(6, 4).to(torch.float8_e4m3fn)}, r"embed.weight is F8_E4M3; publish weights"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, change, message):
    files = VersionFiles(directory(tmp_path / "base", tensors()), adapters=False)
    with pytest.raises(WeightsUnusable, match=message):
        files.check(directory(tmp_path / "version", tensors(**change)))


@pytest.mark.parametrize("written", [True, False])
def test_a_tied_output_matrix_may_be_written_or_left_out(tmp_path, written):
    output = {"lm_head.weight": torch.ones(6, 4)}
    for number, base in enumerate([tensors(**output), tensors()]):
        files = VersionFiles(directory(tmp_path / f"base{number}", base, tie_word_embeddings=True), adapters=False)
        files.check(directory(tmp_path / f"v{number}", tensors(**(output if written else {}))))


def test_an_output_matrix_of_its_own_must_be_there(tmp_path):
    base = directory(tmp_path / "base", tensors(**{"lm_head.weight": torch.ones(6, 4)}), tie_word_embeddings=False)
    with pytest.raises(WeightsUnusable, match=r"lm_head\.weight is missing"):
        VersionFiles(base, adapters=False).check(directory(tmp_path / "version", tensors()))


def test_adapters_must_be_whole_and_stay_the_same_set(tmp_path):
    files = VersionFiles(directory(tmp_path / "base", tensors()), adapters=True)
    stem = "base_model.model.model.layers.0.q_proj"
    pair = {f"{stem}.lora_A.weight": torch.ones(2, 4), f"{stem}.lora_B.weight": torch.zeros(4, 2)}
    files.check(directory(tmp_path / "good", pair, "adapter_model.safetensors"))
    other = {name.replace("layers.0.q_proj", "embed"): tensor for name, tensor in pair.items()}
    for number, (content, message) in enumerate(
        [
            ({f"{stem}.lora_A.weight": torch.ones(2, 4)}, "not one half of an adapter"),
            ({**pair, f"{stem}.lora_A.weight": torch.ones(2, 5)}, r"is \(2, 5\), its matrix at model.path is \(4, 4\)"),
            ({"model.embed.weight": torch.ones(6, 4)}, "not one half of an adapter"),
            ({**pair, f"{stem}.lora_A.weight": torch.ones(2, 4, dtype=torch.int8)}, "lora_A.weight is int8"),
            (
                {**other, f"{stem.replace('layers.0.q_proj', 'embed')}.lora_B.weight": torch.ones(6, 2)},
                "other matrices",
            ),
        ]
    ):
        with pytest.raises(WeightsUnusable, match=message):
            files.check(directory(tmp_path / f"bad{number}", content, "adapter_model.safetensors"))


def test_an_integer_tensor_of_the_model_keeps_its_type(tmp_path):
    counts = {"model.counts": torch.arange(3)}
    files = VersionFiles(directory(tmp_path / "base", tensors(**counts)), adapters=False)
    files.check(directory(tmp_path / "same", tensors(**counts)))
    with pytest.raises(WeightsUnusable, match=r"model\.counts is int32; publish"):
        files.check(directory(tmp_path / "other", tensors(**{"model.counts": torch.arange(3, dtype=torch.int32)})))


@pytest.mark.parametrize(
    "config", ['{"r": 2}', '{"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "use_dora": true}', "["]
)
def test_adapters_of_another_kind_are_refused(tmp_path, config):
    files = VersionFiles(directory(tmp_path / "base", tensors()), adapters=True)
    path = directory(tmp_path / "other", {"x": torch.ones(1)}, "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(config)
    with pytest.raises(WeightsUnusable, match="publish plain LoRA in PEFT's format"):
        files.check(path)


@pytest.mark.parametrize("name", ["../base/model.safetensors", "/dev/zero", "pipe.safetensors"])
def test_an_index_names_files_of_its_own_version_only(tmp_path, name):
    files = VersionFiles(directory(tmp_path / "base", tensors()), adapters=False)
    path = directory(tmp_path / "other", tensors())
    os.mkfifo(path / "pipe.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(WeightsUnusable):
        files.check(path)
