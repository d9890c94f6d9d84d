"""Putting a published version's tensors into a transformers model, all or nothing. Checksums are the broker's."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from actor.engine import WeightsUnusable


def read(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of `model.safetensors`, or of the shards its index names. Raises WeightsUnusable."""
    index = directory / "model.safetensors.index.json"
    try:
        if index.exists():
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        else:
            files = ["model.safetensors"]
        tensors: dict[str, torch.Tensor] = {}
        for name in files:
            tensors.update(load_file(directory / name))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise WeightsUnusable(
            f"{directory}: not readable as safetensors ({error}); publish `model.safetensors`, or shards with an index"
        ) from error
    return tensors


@torch.no_grad()
def put(model: torch.nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Copy `tensors` into the model's parameters in place, cast to the parameters' dtype.

    Everything is checked before the first byte is copied: names, shapes, finite values. A tied parameter may be absent.
    Raises WeightsUnusable naming the tensor; the model is then unchanged."""
    parameters = model.state_dict(keep_vars=True)
    unknown = sorted(set(tensors) - set(parameters))
    if unknown:
        raise WeightsUnusable(f"{source}: {unknown[0]} is not in the model; was it published for another model.path?")
    filled = {parameters[name].data_ptr() for name in tensors}
    for name, parameter in parameters.items():
        if name not in tensors:
            if parameter.data_ptr() in filled:
                continue  # tied: its partner carries the values
            raise WeightsUnusable(f"{source}: {name} is missing; publish every parameter of the model")
        tensor = tensors[name]
        if tensor.shape != parameter.shape:
            raise WeightsUnusable(
                f"{source}: {name} is {tuple(tensor.shape)}, the model at model.path has {tuple(parameter.shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise WeightsUnusable(
                f"{source}: {name} has values that are not finite; training diverged: lower the learning rate and "
                f"resume from an earlier checkpoint"
            )
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)
