"""Low-rank adapters (LoRA: Hu et al., arXiv 2106.09685): W + s · B · A in chosen matrices, s = alpha / rank, W frozen.

The base model is the same module with its adapters left out, so that π_b needs no second copy of the weights. There is
no dropout: the policy that is trained must be the policy that was sampled. Adapters are ordinary parameters of the
layers they sit in: FSDP2 shards them with the rest, optimiser and checkpoints hold what requires a gradient, only them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from broker.errors import EX_USAGE, SieveError
from broker.settings import LoraSettings
from broker.weights.peft_format import module_and_factor, tensor_name

A, B = "lora_A", "lora_B"


class TargetsUnmatched(SieveError):
    """model.lora.targets names a matrix that the model does not have."""

    exit_code = EX_USAGE


class Adapted(nn.Linear):
    """A linear layer of the base, its own weight and bias under their own names, with an adapter beside them.

    `lora_A` (rank, in) and `lora_B` (out, rank) are float32. A is drawn as nn.Linear draws its weight (Kaiming uniform,
    a = √5: bound 1/√in), B is zero: at the start the layer computes what it computed before.
    """

    def __init__(self, linear: nn.Linear, settings: LoraSettings, draw: torch.Generator) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.settings, self.adapted = settings, True
        bound = 1 / math.sqrt(linear.in_features)
        self.lora_A = nn.Parameter(
            torch.empty(settings.rank, linear.in_features).uniform_(-bound, bound, generator=draw)
        )
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, settings.rank))

    def forward(self, input: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        output = super().forward(input)
        if not self.adapted:
            return output
        update = functional.linear(functional.linear(input, self.lora_A), self.lora_B)
        return output + self.settings.scale * update


def attach(causal_lm: nn.Module, settings: LoraSettings, seed: int) -> nn.Module:
    """Freeze the model and put an adapter into every matrix of its decoder layers that `settings.targets` names.

    In place, before sharding; returns the same model. The same seed draws the same adapters on every rank. Raises
    TargetsUnmatched when a target names no linear layer.
    """
    causal_lm.requires_grad_(False)
    layers = f"{causal_lm.base_model_prefix}.layers."
    linears = {
        name: module
        for name, module in causal_lm.named_modules()
        if name.startswith(layers) and isinstance(module, nn.Linear)
    }
    for target in settings.targets:
        if not any(f".{name}".endswith(f".{target}") for name in linears):
            last = sorted({name.rpartition(".")[2] for name in linears})
            near = difflib.get_close_matches(target.rpartition(".")[2], last, 3, 0.5) or last
            raise TargetsUnmatched(
                f"model.lora.targets: {target!r} names no linear layer in {layers}*; the nearest there: "
                f"{', '.join(near)}"
            )
    draw = torch.Generator().manual_seed(seed)
    for name, linear in linears.items():
        if any(f".{name}".endswith(f".{target}") for target in settings.targets):
            parent, _, last = name.rpartition(".")
            setattr(causal_lm.get_submodule(parent), last, Adapted(linear, settings, draw))
    return causal_lm


def lora_of(model: nn.Module) -> LoraSettings | None:
    """The settings of the model's adapters; None for a model without."""
    return next((module.settings for module in model.modules() if isinstance(module, Adapted)), None)


class Unadapted:
    """The base π_b as the policy's own module with its adapters left out."""

    def __init__(self, policy: nn.Module) -> None:
        self.policy = policy

    def __call__(self, *arguments: Any) -> Tensor:
        """The policy's forward, without adapters and without a graph."""
        with torch.no_grad(), _left_out(self.policy):
            return self.policy(*arguments)  # type: ignore[no-any-return]


@contextmanager
def _left_out(model: nn.Module) -> Iterator[None]:
    found = [module for module in model.modules() if isinstance(module, Adapted)]
    for module in found:
        module.adapted = False
    try:
        yield
    finally:
        for module in found:
            module.adapted = True


# --- as tensors by name: `<module>.weight`, `<module>.lora_A`, `<module>.lora_B`


def is_adapter_name(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return name.rpartition(".")[2] in (A, B)


def to_peft(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The adapters in `state` under the names PEFT gives them."""
    named = {name.rpartition(".")[::2]: tensor for name, tensor in state.items() if is_adapter_name(name)}
    return {tensor_name(module, factor): tensor for (module, factor), tensor in named.items()}


def from_peft(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_peft`. Raises ValueError for a tensor that is no adapter's."""
    return {".".join(module_and_factor(name)): tensor for name, tensor in tensors.items()}


def merged(state: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Whole weights of the policy: W + scale · B · A, computed in float32, in W's dtype. Raises ValueError."""
    whole = {name: tensor for name, tensor in state.items() if not is_adapter_name(name)}
    for module in sorted({name.rpartition(".")[0] for name in state if is_adapter_name(name)}):
        weight, left, right = (state.get(f"{module}.{part}") for part in ("weight", B, A))
        if weight is None or left is None or right is None or (left.shape[0], right.shape[1]) != tuple(weight.shape):
            raise ValueError(f"the adapter of {module} does not fit the model: it was trained for another one")
        whole[f"{module}.weight"] = (weight.float() + scale * (left.float() @ right.float())).to(weight.dtype)
    return whole
