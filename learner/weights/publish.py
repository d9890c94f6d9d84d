"""Writing the policy as Hugging Face files: versions in the store for actors, and exports for users.

Collective: every rank takes part in gathering the shards, rank 0 writes. The files load unchanged in transformers and
vLLM, because tensors have their Hugging Face names and the configuration is that of the base model. For a policy with
adapters, a version is the adapters alone in PEFT's format; an export is the whole model with the adapters merged.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from broker.errors import EX_DATA, SieveError
from broker.plain_files import check_plain
from broker.queue.state import VersionName
from broker.settings import LoraSettings
from broker.weights.peft_format import CONFIG, TENSORS, AdapterConfig, read_config
from broker.weights.store import VersionStore
from learner.model.checkpoint import load_weights
from learner.model.lora import attach, from_peft, is_adapter_name, lora_of, merged, to_peft
from learner.model.model import Scorer, full_state, load

INDEX = "model.safetensors.index.json"
NO_SPACE = f"os error {errno.ENOSPC}"
"""How safetensors reports a full disk, inside its own error class."""
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
"""Files of the base model, where it has them, that are copied unchanged beside the weights."""


class AdapterUnusable(SieveError):
    """A directory without an adapter for this model."""

    exit_code = EX_DATA


def publish_weights(
    store: VersionStore,
    name: VersionName,
    policy: Scorer,
    source: Path,
    dtype: torch.dtype,
    *,
    first: bool,
    step: int,
    base: VersionName | None = None,
    meanwhile: Callable[[dict[str, Tensor]], object] | None = None,
) -> str:
    """Write `policy` to `store` as version `name`; returns the identity of its files, "" on other ranks. Collective.

    The broker's version pointer is moved by the caller afterwards, so that it never names a version that is not there.

    Args:
        source: the base model's directory.
        dtype: precision of the files.
        first: whether this is rank 0, which writes.
        step: the optimiser step, for the manifest.
        base: as in VersionStore.publish.
        meanwhile: called on rank 0 with the whole tensors while they are being written.
    """
    state = published_state(policy, dtype, keep=first)
    if not first:
        return ""

    def write() -> str:
        directory, lora = store.begin(name), lora_of(policy)
        if lora is None:
            write_model(directory, state, source, dtype)
        else:
            write_adapters(directory, state, lora, source)
        meta = {"step": step, "dtype": str(dtype).removeprefix("torch.")}
        return store.publish(name, meta, base=base).identity

    if meanwhile is None:
        return write()
    with ThreadPoolExecutor(1, thread_name_prefix="publish") as writer:
        written = writer.submit(write)
        meanwhile(state)
        return written.result()


def published_state(policy: Scorer, dtype: torch.dtype, *, keep: bool) -> dict[str, Tensor]:
    """The tensors of a version under the names in its files, on the CPU in `dtype`. Collective.

    Whole weights under Hugging Face names; for a policy with adapters these alone, under PEFT's names. {} on ranks
    without `keep`.
    """
    if lora_of(policy) is None:
        return full_state(policy, dtype, keep=keep)
    return to_peft(full_state(policy, dtype, keep=keep, wanted=is_adapter_name))


def export(path: Path, policy: Scorer, source: Path, dtype: torch.dtype, *, first: bool) -> None:
    """Write `policy` as a Hugging Face model directory, which replaces `path` once it is complete. Collective."""
    state, lora = full_state(policy, dtype, keep=first), lora_of(policy)
    if first:
        whole = state if lora is None else merged(state, lora.scale)
        with _replacing(path) as directory:
            write_model(directory, whole, source, dtype)


def export_adapters(path: Path, policy: Scorer, source: Path, dtype: torch.dtype, *, first: bool) -> None:
    """Write the adapters of `policy` in PEFT's format; the directory replaces `path` once complete. Collective."""
    state, lora = published_state(policy, dtype, keep=first), lora_of(policy)
    assert lora is not None, "only a policy with adapters can be exported so"
    if first:
        with _replacing(path) as directory:
            write_adapters(directory, state, lora, source)


def convert(checkpoint: Path, path: Path, source: Path, dtype: torch.dtype, lora: LoraSettings | None = None) -> None:
    """Convert a training checkpoint to a Hugging Face model directory at `path`; `source` is the run's base model.

    `lora`: the run's model.lora; the adapters are merged. Raises CheckpointCorrupt, ModelUnusable, TargetsUnmatched.
    """
    model = load(source, torch.float32 if lora is None else dtype)
    policy = Scorer(model if lora is None else attach(model, lora, seed=0))
    load_weights(checkpoint, policy)
    export(path, policy, source, dtype, first=True)


def convert_adapters(adapters: Path, path: Path, source: Path, dtype: torch.dtype) -> None:
    """Merge an adapter in PEFT's format into the base model `source` and write the model directory `path`.

    Raises AdapterUnusable, ModelUnusable.
    """
    state = full_state(Scorer(load(source, dtype)), dtype, keep=True)
    try:
        scale = read_config(adapters).scale
        check_plain(adapters / TENSORS)
        whole = merged(state | from_peft(load_file(adapters / TENSORS)), scale)
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterUnusable(
            f"{adapters}: not an adapter for the model {source} ({str(error)[:300]}); give the base that it was "
            "trained on, and plain LoRA in PEFT's format"
        ) from error
    with _replacing(path) as directory:
        write_model(directory, whole, source, dtype)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """An empty directory to write into, which replaces `path` when the block ends without an error."""
    partial, former = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.former")
    for left in (partial, former):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if path.exists():
        os.rename(path, former)
    os.rename(partial, path)
    shutil.rmtree(former, ignore_errors=True)


def write_adapters(directory: Path, state: dict[str, Tensor], lora: LoraSettings, source: Path) -> None:
    """Write adapters under PEFT's names, with the configuration that PEFT and vLLM read."""
    _save(state, directory / TENSORS)
    config = AdapterConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), base_model_name_or_path=str(source)
    )
    (directory / CONFIG).write_text(config.model_dump_json(indent=2))


def write_model(directory: Path, state: dict[str, Tensor], source: Path, dtype: torch.dtype) -> None:
    """Write tensors in safetensors files of at most 5 GB, with the configuration and tokenizer of `source`."""
    shards = split_torch_state_dict_into_shards(state)
    for name, tensors in shards.filename_to_tensors.items():
        _save({tensor: state[tensor] for tensor in tensors}, directory / name)
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (directory / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True))
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    config.pop("torch_dtype", None)  # the key of older transformers releases; newer ones read both, `dtype` first
    config["dtype"] = str(dtype).removeprefix("torch.")
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except SafetensorError as error:
        if NO_SPACE not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file.parent)) from None
