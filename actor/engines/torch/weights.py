"""Loading a published version's tensors into a transformers model, all or nothing; the broker verifies checksums.

A version is whole weights, or an adapter of the model as it was opened. Adapters are merged, W + s · B · A, with the
original W each time, so that rounding errors do not accumulate and decoding is as fast as without an adapter.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from actor.engine import WeightsUnusable
from actor.weights.checks import check_dtype
from broker.model_files import shards
from broker.plain_files import check_plain
from broker.weights.peft_format import TENSORS, is_adapter, module_and_factor, read_config


class Weights:
    """The weights of one model, which are replaced version by version."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._untouched: dict[str, torch.Tensor] = {}
        """The original matrices that adapters were merged into, by name."""

    def load(self, directory: Path) -> None:
        """Load the version in `directory`, all or nothing. Raises WeightsUnusable; the model is then unchanged."""
        if is_adapter(directory):
            self._merge(directory)
        else:
            self.take(read(directory), str(directory))

    def take(self, tensors: dict[str, torch.Tensor], source: str) -> None:
        """Load whole weights, all or nothing; `source` names their origin in errors. Raises WeightsUnusable."""
        put(self._model, tensors, source)
        self._untouched.clear()

    @torch.no_grad()
    def _merge(self, directory: Path) -> None:
        parameters = self._model.state_dict(keep_vars=True)
        scale, factors = read_adapter(directory)
        updates: dict[str, torch.Tensor] = {}
        for module, pair in factors.items():
            name, left, right = f"{module}.weight", pair.get("lora_B"), pair.get("lora_A")
            if name not in parameters or left is None or right is None:
                missing = "lora_B" if left is None else "lora_A" if right is None else "a matrix of the model"
                raise WeightsUnusable(
                    f"{directory}: {module} lacks {missing}; was it published for another model.path?"
                )
            if (left.shape[0], right.shape[1]) != parameters[name].shape or left.shape[1] != right.shape[0]:
                raise WeightsUnusable(
                    f"{directory}: {module} has B {tuple(left.shape)} and A {tuple(right.shape)}, the matrix in the "
                    f"model at model.path is {tuple(parameters[name].shape)}"
                )
            update = scale * (left.float() @ right.float())
            if not torch.isfinite(update).all():
                raise WeightsUnusable(f"{directory}: the adapter of {module} {NOT_FINITE}")
            updates[name] = update
        for name, untouched in self._untouched.items():
            if name not in updates:
                parameters[name].copy_(untouched)
        for name, update in updates.items():
            base = self._untouched.setdefault(name, parameters[name].detach().clone())
            parameters[name].copy_(base.float() + update.to(base.device))


NOT_FINITE = (
    "has values that are not finite; training diverged: lower the learning rate and resume from an earlier checkpoint"
)


def read_adapter(directory: Path) -> tuple[float, dict[str, dict[str, torch.Tensor]]]:
    """The scale s, and by module the factors `lora_A` (r, in) and `lora_B` (out, r). Raises WeightsUnusable."""
    factors: dict[str, dict[str, torch.Tensor]] = {}
    try:
        scale = read_config(directory).scale
        check_plain(directory / TENSORS)
        for name, tensor in load_file(directory / TENSORS).items():
            check_dtype(str(directory), name, str(tensor.dtype).removeprefix("torch."))
            module, factor = module_and_factor(name)
            factors.setdefault(module, {})[factor] = tensor
    except (OSError, SafetensorError, ValueError) as error:
        raise WeightsUnusable(
            f"{directory}: not readable as an adapter ({error}); publish plain LoRA in PEFT's format"
        ) from error
    return scale, factors


def read(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of `model.safetensors`, or of the shards its index names. Raises WeightsUnusable."""
    try:
        tensors: dict[str, torch.Tensor] = {}
        for path in shards(directory):
            tensors.update(load_file(path))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise WeightsUnusable(
            f"{directory}: not readable as safetensors ({error}); publish `model.safetensors`, or shards with an index"
        ) from error
    return tensors


@torch.no_grad()
def put(model: torch.nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Copy `tensors` into the model's parameters in place, cast to the parameters' dtype.

    Names, shapes, types and finite values are checked before anything is copied. A tied parameter may be absent. Raises
    WeightsUnusable naming the tensor; the model is then unchanged."""
    parameters = model.state_dict(keep_vars=True)
    unknown = sorted(set(tensors) - set(parameters))
    if unknown:
        raise WeightsUnusable(f"{source}: {unknown[0]} is not in the model; was it published for another model.path?")
    filled = {parameters[name].data_ptr() for name in tensors}
    for name, parameter in parameters.items():
        if name not in tensors:
            if parameter.data_ptr() in filled:
                continue  # tied to a parameter that is present
            raise WeightsUnusable(f"{source}: {name} is missing; publish every parameter of the model")
        tensor = tensors[name]
        check_dtype(source, name, str(tensor.dtype).removeprefix("torch."), str(parameter.dtype).removeprefix("torch."))
        if tensor.shape != parameter.shape:
            raise WeightsUnusable(
                f"{source}: {name} is {tuple(tensor.shape)}, the model at model.path has {tuple(parameter.shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise WeightsUnusable(f"{source}: {name} {NOT_FINITE}")
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)
