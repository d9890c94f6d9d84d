"""Scoring against a naive reference, and files that transformers loads unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import learner.model.model
from broker.weights.directory import DirectoryStore
from learner.batch.packing import lay_out, plan
from learner.batch.samples import Samples, table
from learner.model.model import ModelUnusable, Scorer, full_state, load, score, shard, verify_scoring
from learner.ranks import Ranks
from learner.weights.publish import export, publish_weights, write_model
from tests.broker.builders import v
from tests.learner.learner_rig import VOCABULARY, make_groups, save_model


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    world = Ranks("cpu", 60)
    yield world
    world.close()


def samples_of(count: int = 5, n: int = 4) -> Samples:
    groups = make_groups(count, n)
    prompts = [np.arange(3, 5 + index % 4, dtype=np.int32) for index in range(count)]
    return Samples.of(groups, prompts, list(range(count)))


def naive(model: torch.nn.Module, samples: Samples) -> list[Tensor]:
    """One sequence at a time, all logits, log_softmax in float64."""
    found = []
    for prompt, completions in zip(samples.prompts, samples.completions, strict=True):
        for completion in completions:
            ids = torch.from_numpy(np.concatenate([prompt, completion]).astype(np.int64))[None]
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
            found.append(logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None]).squeeze(-1))
    return found


@pytest.mark.parametrize("row_tokens", [0, 16, 256])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.slow
def test_scores_and_gradients_equal_a_naive_reference(
    model_path: Path, ranks: Ranks, row_tokens: int, recompute: bool
) -> None:
    reference = AutoModelForCausalLM.from_pretrained(model_path)
    scorer = shard(
        load(model_path, torch.float32), ranks.mesh, compute=torch.float32, trainable=True, recompute=recompute
    )
    samples = samples_of()
    expected = naive(reference, samples)
    (sum(values.sum() for values in expected) / 7).backward()  # type: ignore[union-attr]
    packed = plan(samples.shapes, 60, row_tokens)
    assert len(packed.micro_batches) > 1
    for rows in packed.micro_batches:
        layout = lay_out(rows, samples.prompts, samples.completions, samples.first)
        scores = score(scorer, layout)
        for place, sample in enumerate(layout.samples.tolist()):
            length = len(expected[sample])
            torch.testing.assert_close(scores[place, :length].double(), expected[sample].detach(), atol=1e-5, rtol=1e-5)
            assert not scores[place, length:].any()
        (scores.sum() / 7).backward()
    for (name, found), wanted in zip(scorer.causal_lm.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found.grad.full_tensor(), wanted.grad, atol=2e-5, rtol=1e-4, msg=name)  # type: ignore[union-attr]


def test_scoring_in_pieces_is_the_same(model_path: Path, ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = shard(load(model_path, torch.float32), ranks.mesh, compute=torch.float32, trainable=True)
    samples = samples_of()
    layout = lay_out(
        plan(samples.shapes, 4096, 256).micro_batches[0], samples.prompts, samples.completions, samples.first
    )
    whole = score(scorer, layout)
    monkeypatch.setattr(learner.model.model, "LOGIT_ELEMENTS", 3 * VOCABULARY)
    pieces = score(scorer, layout)
    torch.testing.assert_close(pieces, whole)
    pieces.sum().backward()


def test_tables_carry_each_completions_own_values(model_path: Path) -> None:
    samples = samples_of()
    for rows in plan(samples.shapes, 60, 256).micro_batches:
        layout = lay_out(rows, samples.prompts, samples.completions, samples.first)
        found = table(layout, samples.sampler)
        for place, sample in enumerate(layout.samples.tolist()):
            assert found[place][layout.mask[place]].tolist() == samples.sampler[sample].tolist()


def test_a_head_with_scaled_logits_is_refused(model_path: Path) -> None:
    class Scaled(LlamaForCausalLM):
        def forward(self, *arguments: object, **named: object) -> object:
            answer = super().forward(*arguments, **named)
            answer.logits = answer.logits * 3
            return answer

    model = Scaled(LlamaConfig.from_pretrained(model_path)).eval()
    with pytest.raises(ModelUnusable, match="changes its logits"):
        verify_scoring(Scorer(model), model_path, shared_rows=True)


def test_attention_that_ignores_the_mask_is_refused_with_the_remedy(model_path: Path) -> None:
    model = load(model_path, torch.float32)
    plain = model.model.forward  # type: ignore[union-attr]
    model.model.forward = lambda attention_mask=None, **named: plain(**named)  # type: ignore[union-attr]
    with pytest.raises(ModelUnusable, match="row_tokens = 0"):
        verify_scoring(Scorer(model), model_path, shared_rows=True)
    verify_scoring(Scorer(model), model_path, shared_rows=False)


@pytest.mark.parametrize("damage", ["missing", "truncated", "renamed"])
def test_an_unusable_model_directory_is_named(model_path: Path, tmp_path: Path, damage: str) -> None:
    if damage == "missing":
        model_path = tmp_path / "nowhere"
    elif damage == "truncated":
        file = model_path / "model.safetensors"
        file.write_bytes(file.read_bytes()[:500])
    else:
        from safetensors.torch import load_file, save_file

        tensors = load_file(model_path / "model.safetensors")
        tensors["model.extra.weight"] = torch.zeros(2)
        save_file(tensors, model_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelUnusable, match=str(model_path)):
        load(model_path, torch.float32)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_export_loads_in_transformers_unchanged(
    tmp_path: Path, ranks: Ranks, tied: bool, dtype: torch.dtype
) -> None:
    source = save_model(tmp_path / "base", tied=tied)
    scorer = shard(load(source, torch.float32), ranks.mesh, compute=dtype, trainable=True)
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.add_(0.01)
    for _ in range(2):  # the second replaces the first
        export(tmp_path / "model", scorer, source, dtype, first=True)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert reloaded.dtype == dtype
    wanted = full_state(scorer, dtype, keep=True)
    found = reloaded.state_dict()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    assert set(found) - set(wanted) == ({"lm_head.weight"} if tied else set())
    assert AutoTokenizer.from_pretrained(tmp_path / "model")("w3 w4")["input_ids"] == [3, 4]
    assert not list(tmp_path.glob(".model*"))


@pytest.mark.slow
def test_a_published_version_is_complete_and_names_its_step(tmp_path: Path, ranks: Ranks, model_path: Path) -> None:
    scorer = shard(load(model_path, torch.float32), ranks.mesh, compute=torch.float32, trainable=False)
    weights = DirectoryStore(tmp_path / "weights")
    publish_weights(weights, v(3), scorer, model_path, torch.float32, first=True, step=6)
    path = weights.fetch(v(3)).directory
    assert weights.manifest(v(3)).meta == {"step": 6, "dtype": "float32"}
    assert torch.equal(AutoModelForCausalLM.from_pretrained(path).lm_head.weight, scorer.head.weight.full_tensor())


def test_large_models_are_written_in_several_files(
    tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards

    monkeypatch.setattr(
        "learner.weights.publish.split_torch_state_dict_into_shards",
        lambda state: split_torch_state_dict_into_shards(state, max_shard_size=8000),
    )
    state = load(model_path, torch.float32).state_dict()
    target = tmp_path / "sharded"
    target.mkdir()
    write_model(target, state, model_path, torch.float32)
    assert len(list(target.glob("*.safetensors"))) > 2
    assert json.loads((target / "model.safetensors.index.json").read_text())["weight_map"].keys() == state.keys()
    found = AutoModelForCausalLM.from_pretrained(target).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
