"""Search for the tensors that a sampler holds wrong, from log-probs alone. Used once, when a mismatch stops training.

The learner scores the sequences in question with the published weights, except for one group of tensors at a time that
is taken from weights the sampler held before (the previous version, the base model). A sampler that did not load a
group has exactly the log-probs of that mixture. A group is one kind of tensors (embedding, attention, mlp, norm,
lm_head), one layer, or one kind in one layer. The policy is overwritten; nothing is published or saved from it
afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from broker.weights.peft_format import TENSORS, module_and_factor
from learner.model.model import Scorer

_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
_KINDS = (
    ("norm", re.compile(r"norm|\.ln_")),
    ("lm_head", re.compile(r"lm_head|embed_out")),
    ("embedding", re.compile(r"embed|\bwte\b|\bwpe\b")),
    ("attention", re.compile(r"attn|attention")),
    ("mlp", re.compile(r"mlp|feed_forward|experts|\.fc")),
)
TIED_HEAD = "lm_head (tied to the embedding)"
"""Not a tensor of the model, but an engine may keep a packed copy that loading the embedding does not renew."""


@dataclass(frozen=True)
class Suspect:
    """A group of tensors taken from `source`, and the mean |Δ| per token, in nats, that is left to the sampler."""

    group: str
    source: str
    gap: float
    tensors: tuple[str, ...]


def kind_of(name: str) -> str:
    """The kind of a tensor by its name: embedding, attention, mlp, norm, lm_head, or other."""
    return next((kind for kind, pattern in _KINDS if pattern.search(name)), "other")


def groups_of(names: list[str]) -> dict[str, list[str]]:
    """The groups to try, description → names of tensors; each set of tensors has one description."""
    groups: dict[str, list[str]] = {}
    for name in names:
        layer, kind = _LAYER.search(name), kind_of(name)
        if layer:
            groups.setdefault(f"{kind} of layer {layer[1]}", []).append(name)
            groups.setdefault(f"layer {layer[1]}", []).append(name)
        groups.setdefault(f"{kind} (all layers)" if layer else kind, []).append(name)
    groups["all tensors"] = list(names)
    # Few tensors first: of two groups that explain the difference, the smaller one is more specific.
    ordered = sorted(groups.items(), key=lambda item: len(item[1]))
    seen: dict[tuple[str, ...], str] = {}
    for group, members in ordered:
        seen.setdefault(tuple(members), group)
    return {group: list(members) for members, group in seen.items()}


class Files:
    """The tensors of a model or adapter directory by the learner's names, each read on access."""

    def __init__(self, directory: Path) -> None:
        self._places: dict[str, tuple[Path, str]] = {}
        for file in sorted(directory.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 -- not a mapping
                    ours = ".".join(module_and_factor(name)) if file.name == TENSORS else name
                    self._places[ours] = file, name

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> Tensor:
        file, stored = self._places[name]
        with safe_open(file, framework="pt") as tensors:
            tensor: Tensor = tensors.get_tensor(stored)
            return tensor


def parameters_of(policy: Scorer) -> dict[str, nn.Parameter]:
    """The policy's sharded parameters by their names in files."""
    reshard(policy)
    return dict(policy.causal_lm.named_parameters())


def reshard(policy: Scorer) -> None:
    """Free gathered parameters, so that the next forward pass gathers what was written to the shards."""
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def assign(parameter: Tensor, value: Tensor) -> None:
    """Copy the whole `value`, the same on every rank, into a sharded parameter. No communication."""
    if isinstance(parameter, DTensor):
        value = value.to(parameter.device, parameter.dtype)
        value = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(value)


def unlike(policy: Scorer, files: Files, dtype: torch.dtype) -> list[str]:
    """Names of tensors whose value in `files` differs from the policy's, compared in `dtype`. Collective."""
    found = []
    for name, parameter in parameters_of(policy).items():
        value = parameter.detach()
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if name in files and not torch.equal(whole.to("cpu", dtype), files[name].to(dtype)):
            found.append(name)
    return found


def suspects(
    policy: Scorer, version: Files, sources: Mapping[str, Files], gap: Callable[[], float], dtype: torch.dtype
) -> Iterator[Suspect]:
    """Every group of every source that differs from `version`, with the gap that it leaves. Collective.

    `gap()`: mean |Δ| per token between the sampler's log-probs and those of the policy in its current state. `policy`
    must hold `version`, and holds it again after each suspect.
    """
    parameters = {name: parameter for name, parameter in parameters_of(policy).items() if name in version}
    tied = bool(getattr(policy.causal_lm.config, "tie_word_embeddings", False))
    for source, files in sources.items():
        changed = [
            name for name in parameters if name in files and not torch.equal(files[name].to(dtype), version[name])
        ]
        for group, members in groups_of(changed).items() if changed else ():
            parameters = parameters_of(policy)
            for name in members:
                assign(parameters[name], files[name].to(dtype))
            yield Suspect(group, source, gap(), tuple(members))
            parameters = parameters_of(policy)
            for name in members:
                assign(parameters[name], version[name])
        embedding = [name for name in changed if kind_of(name) == "embedding"]
        if tied and embedding:
            with _head_of(policy, files[embedding[0]].to(dtype)):
                yield Suspect(TIED_HEAD, source, gap(), tuple(embedding))


@contextmanager
def _head_of(policy: Scorer, weight: Tensor) -> Iterator[None]:
    """Compute the output head with `weight` (vocabulary, hidden) instead of the tied matrix."""

    def replaced(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return nn.functional.linear(inputs[0], weight.to(inputs[0].device, inputs[0].dtype))

    handle = policy.head.register_forward_hook(replaced)
    try:
        yield
    finally:
        handle.remove()


def best(found: list[Suspect], bound: float) -> Suspect | None:
    """The suspect with the smallest gap; of those equal up to rounding, the one with the fewest tensors. None when all
    gaps exceed `bound`."""
    within = [suspect for suspect in found if suspect.gap <= bound]
    if not within:
        return None
    least = min(suspect.gap for suspect in within)
    return min((s for s in within if s.gap <= 2 * least + bound / 100), key=lambda s: (len(s.tensors), s.gap))
