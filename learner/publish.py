"""The policy as Hugging Face files: for actors (a version in the weights directory) and for people (an export).

Collective: every rank takes part in gathering, rank 0 writes. What is written loads unchanged in transformers and vLLM,
because tensors carry their Hugging Face names and the configuration is the base model's own.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from broker.weights import WeightsDirectory
from learner.checkpoint import load_weights
from learner.model import Scorer, full_state, load

INDEX = "model.safetensors.index.json"
NO_SPACE = f"os error {errno.ENOSPC}"
"""How safetensors words a full disk: it has an error of its own for all that goes wrong."""
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files that go with the weights as they are, where the base model has them."""


def publish_weights(
    weights: WeightsDirectory,
    version: int,
    policy: Scorer,
    source: Path,
    dtype: torch.dtype,
    *,
    first: bool,
    step: int,
    delta: bool = False,
) -> None:
    """Write `policy` as `version`; visible to readers once its manifest is complete. Collective.

    With `delta`, also what changed since the version before, if that is little.

    The broker's version pointer is not moved here: that comes after, so that it never names files that are not there.
    """
    state = full_state(policy, dtype, keep=first)
    if first:
        write_model(weights.begin(version), state, source, dtype)
        weights.publish(version, {"step": step, "dtype": str(dtype).removeprefix("torch.")}, delta=delta)


def export(path: Path, policy: Scorer, source: Path, dtype: torch.dtype, *, first: bool) -> None:
    """Write `policy` as a Hugging Face model directory, replacing what is at `path` at the very end. Collective."""
    state = full_state(policy, dtype, keep=first)
    if not first:
        return
    partial, former = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.former")
    for left in (partial, former):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    write_model(partial, state, source, dtype)
    if path.exists():
        os.rename(path, former)
    os.rename(partial, path)
    shutil.rmtree(former, ignore_errors=True)


def convert(checkpoint: Path, path: Path, source: Path, dtype: torch.dtype) -> None:
    """A training checkpoint as a Hugging Face model directory at `path`; `source` is the run's base model.

    Raises CheckpointCorrupt, ModelUnusable.
    """
    policy = Scorer(load(source, torch.float32))
    load_weights(checkpoint, policy)
    export(path, policy, source, dtype, first=True)


def write_model(directory: Path, state: dict[str, Tensor], source: Path, dtype: torch.dtype) -> None:
    """Tensors in safetensors files of at most 5 GB, with the configuration and tokenizer of the model in `source`."""
    shards = split_torch_state_dict_into_shards(state)
    for name, tensors in shards.filename_to_tensors.items():
        try:
            save_file({tensor: state[tensor] for tensor in tensors}, directory / name, metadata={"format": "pt"})
        except SafetensorError as error:
            if NO_SPACE not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory)) from None
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (directory / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True))
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    config.pop("torch_dtype", None)  # the name older releases wrote; newer ones read either, and `dtype` first
    config["dtype"] = str(dtype).removeprefix("torch.")
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
