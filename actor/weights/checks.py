"""Checks of a version's files against the base model: names, shapes, types, finite values. Needs no model in memory.

For engines whose model lives in other processes, which must not be touched by a version that does not fit. That the
bytes are those that were published is checked before, against the manifest (broker.weights).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from actor.engine import WeightsUnusable
from broker.model_files import problem_of, shards
from broker.weights.peft_format import read_config


class Header(NamedTuple):
    """A tensor's type, by torch's name, and its shape."""

    dtype: str
    shape: tuple[int, ...]


Headers = dict[str, Header]
"""The tensors of a version by name."""
FLOATS = ("float32", "bfloat16", "float16")
"""The types that weights are published in."""
_TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
}  # fmt: skip
"""Types by the names in safetensors' headers; others keep these names."""
OUTPUT = "lm_head.weight"
_ADAPTER = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


def headers(directory: Path, stem: str = "model") -> Headers:
    """Type and shape of every tensor, from the files' headers. Raises WeightsUnusable."""
    found: Headers = {}
    try:
        for path in shards(directory, stem):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 -- not a mapping
                    header = file.get_slice(name)
                    dtype = str(header.get_dtype())
                    found[name] = Header(_TORCH_NAMES.get(dtype, dtype), tuple(header.get_shape()))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise WeightsUnusable(
            f"{directory}: not readable as safetensors ({error}); publish `{stem}.safetensors`, or shards with an index"
        ) from error
    return found


def check_dtype(source: str, name: str, dtype: str, base: str = "") -> None:
    """Check that a tensor has one of FLOATS, or like its `base` is an integer: engines would cast any other to the
    model's type, and sample from weights that nobody trained. Types by torch's names. Raises WeightsUnusable."""
    if dtype not in FLOATS and not (dtype == base and base.startswith(("int", "uint", "bool"))):
        raise WeightsUnusable(f"{source}: {name} is {dtype}; publish weights as {', '.join(FLOATS)} (model.dtype)")


class VersionFiles:
    """Expected files of a version of the model in directory `base`: every tensor of the base, or with `adapters` PEFT's
    adapters for some of its matrices. Raises WeightsUnusable when the base cannot be read."""

    def __init__(self, base: Path, *, adapters: bool) -> None:
        if problem := problem_of(base):
            raise WeightsUnusable(problem)
        self.adapters = adapters
        self._base = headers(base)
        self._stem = "adapter_model" if adapters else "model"
        # A tied output matrix may be written or left out.
        config = json.loads((base / "config.json").read_text())
        self._optional = {OUTPUT} if config.get("tie_word_embeddings") or OUTPUT not in self._base else set()
        self._names: set[str] | None = None

    def check(self, directory: Path) -> None:
        """Check names, shapes, types and finite values; reads the whole version, one tensor at a time.

        Raises WeightsUnusable, naming the tensor, when the version must not be sampled from.
        """
        there = headers(directory, self._stem)
        if self.adapters:
            self._check_adapters(directory, there)
        else:
            self.check_headers(str(directory), there)
        _check_finite(directory, self._stem)

    def check_headers(self, source: str, there: Headers) -> None:
        """Check that `there` has every tensor of the base and no other, in a type that is loaded as it is; `source`
        names its origin in errors.

        Raises WeightsUnusable.
        """
        for name, (dtype, shape) in there.items():
            base = self._base.get(name)
            if base is None and name not in self._optional:
                raise WeightsUnusable(f"{source}: {name} is not in the model; was it published for another model.path?")
            if base is not None and shape != base.shape:
                raise WeightsUnusable(f"{source}: {name} is {shape}, the model at model.path has {base.shape}")
            check_dtype(source, name, dtype, "" if base is None else base.dtype)
        for name in self._base:
            if name not in there and name not in self._optional:
                raise WeightsUnusable(f"{source}: {name} is missing; publish every parameter of the model")

    def _check_adapters(self, directory: Path, there: Headers) -> None:
        try:
            read_config(directory)
        except (OSError, ValueError) as error:
            raise WeightsUnusable(f"{directory}: {error}; publish plain LoRA in PEFT's format") from None
        if not there:
            raise WeightsUnusable(f"{directory}: no adapters in it; publish those of model.lora.targets")
        for name, (dtype, shape) in there.items():
            found = _ADAPTER.fullmatch(name)
            matrix = self._base.get(f"{found[1]}.weight") if found else None
            other = name.replace("lora_A", "lora_B") if ".lora_A." in name else name.replace("lora_B", "lora_A")
            if found is None or matrix is None or other not in there:
                raise WeightsUnusable(
                    f"{directory}: {name} is not one half of an adapter for a matrix at model.path; publish lora_A and "
                    f"lora_B of each in PEFT's names"
                )
            side = 1 if found[2] == "A" else 0
            if len(shape) != 2 or shape[side] != matrix.shape[side]:
                raise WeightsUnusable(f"{directory}: {name} is {shape}, its matrix at model.path is {matrix.shape}")
            check_dtype(str(directory), name, dtype)
        if self._names not in (None, set(there)):
            raise WeightsUnusable(
                f"{directory}: adapters for other matrices than those of the versions before; publish the same ones in "
                f"every version"
            )
        self._names = set(there)


def _check_finite(directory: Path, stem: str) -> None:
    import torch

    for path in shards(directory, stem):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 -- not a mapping
                if not torch.isfinite(file.get_tensor(name)).all():
                    raise WeightsUnusable(
                        f"{directory}: {name} has values that are not finite; training diverged: lower the learning "
                        f"rate and resume from an earlier checkpoint"
                    )
