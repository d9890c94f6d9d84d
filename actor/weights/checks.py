"""Checks of a version's files against the base model: names, shapes, finite values. Needs no model in memory.

For engines whose model lives in other processes, which must not be touched by a version that does not fit. That the
bytes are those that were published is checked before, against the manifest (broker.weights).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from actor.engine import WeightsUnusable

Shapes = dict[str, tuple[int, ...]]
OUTPUT = "lm_head.weight"
_ADAPTER = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


def files(directory: Path, stem: str = "model") -> list[Path]:
    """`<stem>.safetensors`, or the shards that its index names. Raises OSError, ValueError or KeyError."""
    index = directory / f"{stem}.safetensors.index.json"
    if index.exists():
        return [directory / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    return [directory / f"{stem}.safetensors"]


def shapes(directory: Path, stem: str = "model") -> Shapes:
    """Name and shape of every tensor, from the files' headers. Raises WeightsUnusable."""
    found: Shapes = {}
    try:
        for path in files(directory, stem):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 -- not a mapping
                    found[name] = tuple(file.get_slice(name).get_shape())
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise WeightsUnusable(
            f"{directory}: not readable as safetensors ({error}); publish `{stem}.safetensors`, or shards with an index"
        ) from error
    return found


class VersionFiles:
    """Expected files of a version of the model in directory `base`: every tensor of the base, or with `adapters` PEFT's
    adapters for some of its matrices. Raises WeightsUnusable when the base cannot be read."""

    def __init__(self, base: Path, *, adapters: bool) -> None:
        self.adapters = adapters
        self._base = shapes(base)
        self._stem = "adapter_model" if adapters else "model"
        # A tied output matrix may be written or left out.
        config = json.loads((base / "config.json").read_text())
        self._optional = {OUTPUT} if config.get("tie_word_embeddings") or OUTPUT not in self._base else set()
        self._names: set[str] | None = None

    def check(self, directory: Path) -> None:
        """Check names, shapes and finite values; reads the whole version, one tensor at a time.

        Raises WeightsUnusable, naming the tensor, when the version must not be sampled from.
        """
        there = shapes(directory, self._stem)
        if self.adapters:
            self._check_adapters(directory, there)
        else:
            self.check_shapes(str(directory), there)
        _check_finite(directory, self._stem)

    def check_shapes(self, source: str, there: Shapes) -> None:
        """Check that `there` has every tensor of the base and no other; `source` names its origin in errors.

        Raises WeightsUnusable.
        """
        for name, shape in there.items():
            if name not in self._base and name not in self._optional:
                raise WeightsUnusable(f"{source}: {name} is not in the model; was it published for another model.path?")
            if shape != self._base.get(name, shape):
                raise WeightsUnusable(f"{source}: {name} is {shape}, the model at model.path has {self._base[name]}")
        for name in self._base:
            if name not in there and name not in self._optional:
                raise WeightsUnusable(f"{source}: {name} is missing; publish every parameter of the model")

    def _check_adapters(self, directory: Path, there: Shapes) -> None:
        if not there:
            raise WeightsUnusable(f"{directory}: no adapters in it; publish those of model.lora.targets")
        for name, shape in there.items():
            found = _ADAPTER.fullmatch(name)
            matrix = self._base.get(f"{found[1]}.weight") if found else None
            other = name.replace("lora_A", "lora_B") if ".lora_A." in name else name.replace("lora_B", "lora_A")
            if found is None or matrix is None or other not in there:
                raise WeightsUnusable(
                    f"{directory}: {name} is not one half of an adapter for a matrix at model.path; publish lora_A and "
                    f"lora_B of each in PEFT's names"
                )
            side = shape[1] if found[2] == "A" else shape[0]
            if len(shape) != 2 or side != matrix[1 if found[2] == "A" else 0]:
                raise WeightsUnusable(f"{directory}: {name} is {shape}, its matrix at model.path is {matrix}")
        if self._names not in (None, set(there)):
            raise WeightsUnusable(
                f"{directory}: adapters for other matrices than those of the versions before; publish the same ones in "
                f"every version"
            )
        self._names = set(there)


def _check_finite(directory: Path, stem: str) -> None:
    import torch

    for path in files(directory, stem):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 -- not a mapping
                if not torch.isfinite(file.get_tensor(name)).all():
                    raise WeightsUnusable(
                        f"{directory}: {name} has values that are not finite; training diverged: lower the learning "
                        f"rate and resume from an earlier checkpoint"
                    )
