"""Adapters: the identity at the start, the only thing that trains, the same function wherever they are loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from actor.engines.torch.model import open_model
from broker.settings import LoraSettings, ModelSettings
from broker.weights.directory import DirectoryStore
from learner.batch.packing import Layout, lay_out, plan
from learner.batch.samples import Samples
from learner.model.checkpoint import CheckpointCorrupt, Checkpoints, Progress, load_weights
from learner.model.lora import Adapted, TargetsUnmatched, Unadapted, attach, from_peft, lora_of, merged, to_peft
from learner.model.model import Scorer, full_state, load, score, shard
from learner.objective.registry import build
from learner.ranks import Ranks
from learner.settings import LearnerSettings, OptimizerSettings
from learner.train.partition import PartitionFunction
from learner.train.step import Trainer
from learner.weights.publish import AdapterUnusable, convert, convert_adapters, export, export_adapters, publish_weights
from tests.broker.builders import v
from tests.learner.learner_rig import make_groups, save_model

LORA = LoraSettings(rank=4, alpha=8)
WORKER = Path(__file__).parents[1] / "train" / "gradient_worker.py"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    world = Ranks("cpu", 60)
    yield world
    world.close()


def adapted(path: Path, ranks: Ranks, lora: LoraSettings = LORA, **options: Any) -> Scorer:
    chosen = {"compute": torch.float32, "trainable": True} | options
    return shard(attach(load(path, chosen["compute"]), lora, seed=3), ranks.mesh, **chosen)


def trainer_of(policy: Scorer, ranks: Ranks, lr: float = 0.02) -> Trainer:
    settings = LearnerSettings(micro_batch_tokens=64, optimizer=OptimizerSettings(lr=lr))
    objective = build(settings.objective, length_norm=6.0)
    return Trainer(settings, ranks, policy, Unadapted(policy), objective, PartitionFunction(settings.partition))


def samples_of(seed: int) -> Samples:
    groups = make_groups(6, 4, seed=seed)
    return Samples.of(groups, [np.arange(3, 6, dtype=np.int32)] * len(groups), list(range(len(groups))))


def steps(trainer: Trainer, count: int, first: int = 1) -> list[float]:
    losses = []
    for step in range(first, first + count):
        report = trainer.step(samples_of(step), step=step, progress=0.5)
        assert not report.refused
        losses.append(report.loss)
    return losses


def layout_of(seed: int = 0) -> Layout:
    samples = samples_of(seed)
    return lay_out(plan(samples.shapes, 4096, 64).micro_batches[0], samples.prompts, samples.completions, samples.first)


def shuffled(policy: Scorer, scale: float = 0.3) -> Scorer:
    """The policy with adapters that do something."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in policy.causal_lm.named_parameters():
            if name.endswith("lora_B"):
                local = value.to_local() if hasattr(value, "to_local") else value
                local.copy_(scale * torch.randn(local.shape, generator=draw))
    return policy


@torch.no_grad()
def gap(left: Callable[..., Tensor], right: Callable[..., Tensor]) -> float:
    layout = layout_of()
    return float((score(left, layout) - score(right, layout)).abs().max())


# --- what an adapter is


def test_adapters_are_the_identity_at_the_start_and_the_base_afterwards(model_path: Path, ranks: Ranks) -> None:
    base = shard(load(model_path, torch.float32), ranks.mesh, compute=torch.float32, trainable=False)
    policy = adapted(model_path, ranks)
    assert gap(policy, base) == 0
    shuffled(policy)
    assert gap(policy, base) > 0.1
    assert gap(Unadapted(policy), base) == 0
    assert gap(policy, base) > 0.1, "the adapters were not put back"


def test_the_policy_computes_with_the_base_plus_scaled_b_times_a(model_path: Path, ranks: Ranks) -> None:
    """Against W + (alpha / rank) · B · A written into an untouched model by hand."""
    policy = shuffled(adapted(model_path, ranks))
    state = full_state(policy, torch.float32, keep=True)
    plain = load(model_path, torch.float32)
    changed = 0
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            module = name.removesuffix(".weight")
            if f"{module}.lora_A" in state:
                weight += (8 / 4) * state[f"{module}.lora_B"] @ state[f"{module}.lora_A"]
                changed += 1
    assert changed == 2 * 7
    assert gap(policy, Scorer(plain)) < 1e-5


def test_a_is_drawn_from_the_seed_and_b_is_zero(model_path: Path) -> None:
    def drawn(seed: int) -> dict[str, Tensor]:
        return dict(attach(load(model_path, torch.float32), LORA, seed).named_parameters())

    one, same, other = drawn(1), drawn(1), drawn(2)
    for name, value in one.items():
        assert torch.equal(value, same[name]) and value.requires_grad == ("lora_" in name)
        if name.endswith("lora_A"):
            assert not torch.equal(value, other[name])
            bound = value.shape[1] ** -0.5
            assert 0.8 * bound < float(value.detach().abs().max()) <= bound
        elif name.endswith("lora_B"):
            assert not value.any()


def test_targets_name_matrices_by_the_end_of_their_path(model_path: Path) -> None:
    model = attach(load(model_path, torch.float32), LoraSettings(targets=("self_attn.v_proj", "up_proj")), seed=0)
    found = {name for name, module in model.named_modules() if isinstance(module, Adapted)}
    assert found == {f"model.layers.{at}.{end}" for at in (0, 1) for end in ("self_attn.v_proj", "mlp.up_proj")}
    assert lora_of(model) == LoraSettings(targets=("self_attn.v_proj", "up_proj"))
    assert lora_of(load(model_path, torch.float32)) is None


@pytest.mark.parametrize(
    ("target", "nearest"),
    [("qproj", "q_proj"), ("mlp.upp_proj", "up_proj"), ("norm", "q_proj"), ("lm_head", "up_proj")],
)
def test_a_target_that_is_not_there_is_refused_with_the_nearest(model_path: Path, target: str, nearest: str) -> None:
    with pytest.raises(TargetsUnmatched, match=f"{target}.*{nearest}"):
        attach(load(model_path, torch.float32), LoraSettings(targets=("q_proj", target)), seed=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "greater than or equal to 1"),
        ({"rank": 513}, "less than or equal to 512"),
        ({"alpha": 0}, "greater than 0"),
        ({"targets": []}, "at least 1"),
        ({"targets": ["*.q_proj"]}, "patterns are not understood"),
        ({"targets": ["q_proj", "v_proj", "q_proj"]}, "2 times: keep one"),
    ],
)
def test_settings_that_make_no_adapter_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LoraSettings(**given)


# --- what trains


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.slow
def test_only_adapters_learn_and_the_base_stays_bit_for_bit(model_path: Path, ranks: Ranks, recompute: bool) -> None:
    policy = adapted(model_path, ranks, recompute=recompute)
    trainer = trainer_of(policy, ranks)
    optimised = {id(value) for group in trainer.optimizer.param_groups for value in group["params"]}
    named = dict(policy.causal_lm.named_parameters())
    assert optimised == {id(value) for name, value in named.items() if "lora_" in name}
    before = full_state(policy, torch.float32, keep=True)
    steps(trainer, 3)
    for name, after in full_state(policy, torch.float32, keep=True).items():
        assert torch.equal(after, before[name]) != ("lora_" in name), name
    base = Scorer(load(model_path, torch.float32))
    assert gap(trainer.base, base) < 1e-6 < gap(policy, base)


@pytest.mark.slow
def test_steps_move_probability_to_answers_that_pass(model_path: Path, ranks: Ranks) -> None:
    model = load(model_path, torch.float32)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)  # type: ignore[operator]
    model.save_pretrained(model_path)  # type: ignore[operator]
    policy = adapted(model_path, ranks)

    def mass() -> float:
        whole = load(model_path, torch.float32)
        whole.load_state_dict(merged(full_state(policy, torch.float32, keep=True), LORA.scale))
        with torch.no_grad():
            return float(whole(torch.arange(3, 6)[None]).logits[0, -1].softmax(-1)[::2].sum())

    before = mass()
    steps(trainer_of(policy, ranks), 20)
    assert mass() > before + 0.15


@pytest.mark.parametrize("compute", [torch.bfloat16, torch.float16])
@pytest.mark.slow
def test_the_base_is_held_in_the_computing_precision_and_adapters_in_float32(
    model_path: Path, ranks: Ranks, compute: torch.dtype
) -> None:
    policy = adapted(model_path, ranks, compute=compute)
    for name, value in policy.causal_lm.named_parameters():
        assert value.dtype == (torch.float32 if "lora_" in name else compute)
    base = shard(load(model_path, compute), ranks.mesh, compute=compute, trainable=False)
    assert gap(policy, base) == 0
    steps(trainer_of(policy, ranks), 2)
    assert gap(policy, base) > 0 and gap(Unadapted(policy), base) == 0


@pytest.mark.slow
def test_sharded_over_one_or_two_ranks_they_train_as_unsharded(
    torchrun: Callable[..., list[Any]], tmp_path: Path
) -> None:
    """… and a checkpoint of two ranks resumes on one, and the other way round."""
    model, by_two, by_one = str(save_model(tmp_path / "base")), str(tmp_path / "by-two"), str(tmp_path / "by-one")

    def run(count: int, *tasks: tuple[str, int, str, str]) -> list[Any]:
        given = [[what, budget, where, "alpha_dpg", how] for what, budget, where, how in tasks]
        return torchrun(WORKER, count, model, json.dumps(given))

    saving = run(2, ("save", 64, by_two, "sharded"), ("train", 24, by_two, "sharded"))
    (whole, split, plain, from_two, from_one), = run(
        1, ("save", 64, by_one, "sharded"), ("train", 24, by_one, "sharded"), ("train", 64, by_one, "plain"),
        ("load", 64, by_two, "sharded"), ("load", 64, by_one, "sharded"),
    )  # fmt: skip
    two = run(2, ("load", 64, by_one, "sharded"), ("load", 64, by_two, "sharded"))[0]

    def close(left: dict[str, Any], right: dict[str, Any]) -> None:
        np.testing.assert_allclose(left["losses"], right["losses"], atol=1e-5)
        for name, values in left["gradients"].items():
            np.testing.assert_allclose(values, right["gradients"][name], atol=1e-6, rtol=1e-4, err_msg=name)
        for name, values in left["weights"].items():
            bound = 2e-3 if "lora_" in name else 0  # AdamW makes whole steps of rounding in near-zero gradients
            np.testing.assert_allclose(
                values, right["weights"][name], atol=bound, rtol=1e-4 * bool(bound), err_msg=name
            )

    assert max(abs(value) for name in whole["gradients"] for value in whole["gradients"][name]) > 1e-4
    assert all("lora_" in name for name in whole["gradients"])
    close(whole, plain)
    close(whole, split)
    for rank in saving:
        close(whole, rank[0])
        close(whole, rank[1])
    close(from_one, two[0])
    close(from_two, two[1])
    close(from_one, from_two)
    moved = max(np.abs(np.subtract(whole["weights"][n], from_one["weights"][n])).max() for n in whole["weights"])
    assert 1e-3 < moved < 0.05


# --- what is on disk


@pytest.mark.slow
def test_a_checkpoint_holds_adapters_only_and_brings_them_back(model_path: Path, ranks: Ranks, tmp_path: Path) -> None:
    policy = adapted(model_path, ranks)
    trainer = trainer_of(policy, ranks)
    store = Checkpoints(tmp_path / "checkpoints", ranks)
    steps(trainer, 2)
    saved = Progress(2, "f", trainer.partition.pack())
    name = store.save(saved, 1, policy, trainer.optimizer)
    directory = store.directory(name)
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    names = FileSystemReader(directory).read_metadata().state_dict_metadata
    assert names and all("lora_" in name for name in names if name.startswith("model."))

    losses = steps(trainer, 2, first=3)
    fresh = adapted(model_path, ranks)
    resumed = trainer_of(fresh, ranks)
    assert store.load(name, fresh, resumed.optimizer, fingerprint="f") == saved
    resumed.partition.load(saved.z)
    assert steps(resumed, 2, first=3) == losses
    found, wanted = (full_state(one, torch.float32, keep=True) for one in (fresh, policy))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)

    convert(directory, tmp_path / "out", model_path, torch.float32, LORA)
    back = attach(load(model_path, torch.float32), LORA, seed=0)
    load_weights(directory, scorer := Scorer(back))
    assert gap(scorer, Scorer(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))) < 1e-5
    for lora, what in ((None, "lm_head|embed_tokens"), (LoraSettings(rank=8), r"lora_[AB] \(")):
        with pytest.raises(CheckpointCorrupt, match=rf"{what}.*model\.lora"):
            convert(directory, tmp_path / "out", model_path, torch.float32, lora)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.slow
def test_an_export_is_merged_and_the_adapter_beside_it_is_the_same_policy(
    tmp_path: Path, ranks: Ranks, tied: bool, dtype: torch.dtype
) -> None:
    source = save_model(tmp_path / "base", tied=tied)
    policy = shuffled(adapted(source, ranks, compute=dtype))
    export(tmp_path / "model", policy, source, dtype, first=True)
    for _ in range(2):  # the second replaces the first
        export_adapters(tmp_path / "adapter", policy, source, dtype, first=True)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert whole.dtype == dtype
    if dtype == torch.float32:
        assert gap(policy, Scorer(whole)) < 1e-5
    convert_adapters(tmp_path / "adapter", tmp_path / "again", source, dtype)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(again[name], value) for name, value in whole.state_dict().items())
    other = save_model(tmp_path / "other")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"r": 4, "use_dora": true}')
    with pytest.raises(AdapterUnusable, match="use_dora"):
        convert_adapters(tmp_path / "adapter", tmp_path / "again", other, dtype)


def test_a_version_is_small_and_in_pefts_format(model_path: Path, ranks: Ranks, tmp_path: Path) -> None:
    weights = DirectoryStore(tmp_path / "weights")
    publish_weights(weights, v(0), adapted(model_path, ranks), model_path, torch.float32, first=True, step=0)
    path = weights.fetch(v(0)).directory
    assert {file.name for file in path.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "manifest.json",
    }  # fmt: skip
    config = json.loads((path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8)
    assert config["target_modules"] == list(LORA.targets) and config["base_model_name_or_path"] == str(model_path)
    tensors = load_file(path / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * 2
    name = "base_model.model.model.layers.1.mlp.down_proj"
    assert tensors[f"{name}.lora_A.weight"].shape == (4, 32) and tensors[f"{name}.lora_B.weight"].shape == (16, 4)
    assert not any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name), "version 0 is the base"
    assert to_peft(from_peft(tensors)).keys() == tensors.keys()


@torch.no_grad()
def test_the_torch_engine_gives_the_learners_log_probs(model_path: Path, ranks: Ranks, tmp_path: Path) -> None:
    """Published by the one, loaded by the other, version after version: within 1e-4 in float32."""
    device = torch.device("cpu")
    sampler, _ = open_model(ModelSettings(path=model_path, lora=LORA), device, pass_tokens=64)
    policy, weights, samples = adapted(model_path, ranks), DirectoryStore(tmp_path / "weights"), samples_of(0)
    layout, moved = layout_of(), []
    sequences = [(samples.prompts[0], ids) for group in samples.completions for ids in group]
    base = score(policy, layout)
    for version in range(3):
        publish_weights(weights, v(version), policy, model_path, torch.float32, first=True, step=version)
        sampler.load(weights.fetch(v(version)).directory)
        scores = score(policy, layout)
        moved.append(float((scores - base).abs().max()))
        for row, sample in enumerate(layout.samples.tolist()):
            found = torch.from_numpy(sampler.score([sequences[sample]])[0])
            torch.testing.assert_close(found, scores[row, : len(found)], atol=1e-4, rtol=0)
        shuffled(policy, 0.2 * (version + 1))
    assert moved[0] == 0 and min(moved[1:]) > 0.05


def test_pefts_own_library_loads_a_version(model_path: Path, ranks: Ranks, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="pip install peft, to read adapters with the library that defines them")
    policy = shuffled(adapted(model_path, ranks))
    export_adapters(tmp_path / "adapter", policy, model_path, torch.float32, first=True)
    base = AutoModelForCausalLM.from_pretrained(model_path)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    assert gap(policy, Scorer(theirs)) < 1e-5
