"""Checkpoints: the trained part of the model, optimiser, step, version, Z statistics and random state.

    <directory>/step-00000010/   the sharded tensors (PyTorch distributed checkpoint), state.msgpack, manifest.json

Written to a hidden directory, hashed and synced, and renamed into place: a checkpoint is whole or absent. Tensors are
stored by name and global offset, so a checkpoint of any number of ranks loads on any other. A checkpoint that does not
match its manifest is refused with the remedy; another one is never chosen silently.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import torch
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from broker.errors import EX_DATA, SieveError
from learner.ranks import Ranks

MANIFEST, STATE = "manifest.json", "state.msgpack"
SCHEMA = 1
_FINAL = re.compile(r"step-([0-9]{8,12})")


class CheckpointCorrupt(SieveError):
    """A checkpoint that does not match its manifest, or that belongs to another run or release."""

    exit_code = EX_DATA


@dataclass(frozen=True)
class Progress:
    """Where the run stands, beside model and optimiser."""

    step: int = 0
    version: int = 0
    """Newest version published when the checkpoint was taken."""
    published_step: int = 0
    """Optimiser steps contained in that version."""
    fingerprint: str = ""
    z: dict[int, bytes] = field(default_factory=dict)
    """Packed Z statistics of each prompt."""


class Checkpoints:
    """The checkpoints of one run. All methods but `steps` are collective: every rank calls them."""

    def __init__(self, path: Path, ranks: Ranks) -> None:
        self.path, self.ranks = path, ranks

    def steps(self) -> list[int]:
        """Steps with a checkpoint, oldest first."""
        if not self.path.is_dir():
            return []
        return sorted(int(found[1]) for entry in self.path.iterdir() if (found := _FINAL.fullmatch(entry.name)))

    def directory(self, step: int) -> Path:
        return self.path / f"step-{step:08d}"

    def save(self, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer) -> Path:
        """Write the checkpoint of `progress.step`, replacing one of the same step; durable when it returns."""
        final = self.directory(progress.step)
        partial = self.path / f".{final.name}.partial"
        if self.ranks.first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.ranks.barrier()
        tensors, moments = get_state_dict(model, optimizer)
        state_dict_saver.save({"model": _trained(model, tensors), "optimizer": moments}, checkpoint_id=partial)
        mine = sorted(partial.glob(f"__{self.ranks.rank}_*"))
        found = self.ranks.gather({file.name: _digest(file) for file in mine})
        if self.ranks.first:
            body = {
                "schema": SCHEMA,
                "z": progress.z,
                "random": torch.get_rng_state().numpy().tobytes(),
            }
            _write(partial / STATE, msgpack.packb(body, use_bin_type=True))
            files = {name: digest for part in found for name, digest in part.items()}
            files |= {name: _digest(partial / name) for name in (STATE, ".metadata")}
            manifest = {
                "schema": SCHEMA,
                "step": progress.step,
                "version": progress.version,
                "published_step": progress.published_step,
                "fingerprint": progress.fingerprint,
                "ranks": self.ranks.world,
                "files": files,
            }
            _write(partial / MANIFEST, json.dumps(manifest, indent=1).encode())
            _sync(partial)
            former = self.path / f".{final.name}.former"
            shutil.rmtree(former, ignore_errors=True)
            if final.exists():
                os.rename(final, former)
            os.rename(partial, final)
            _sync(self.path)
            shutil.rmtree(former, ignore_errors=True)
        self.ranks.barrier()
        return final

    def load(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, *, fingerprint: str) -> Progress:
        """Check and load the checkpoint of `step` into model and optimiser. Raises CheckpointCorrupt on every rank."""
        directory = self.directory(step)
        manifest, problem = _manifest(directory, step)
        names = sorted(manifest.get("files", {}))
        for name in names[self.ranks.rank :: self.ranks.world]:
            problem = problem or _compare(directory / name, manifest["files"][name])
        problems = [text for text in self.ranks.gather(problem) if text]
        if problems:
            older = [other for other in self.steps() if other < step]
            remedy = f"to resume from step {older[-1]}" if older else "to start from the base model"
            raise CheckpointCorrupt(
                f"checkpoint {directory}: {problems[0]}. Restore it from a copy, or delete that directory {remedy}"
            )
        if manifest["fingerprint"] != fingerprint:
            raise CheckpointCorrupt(
                f"checkpoint {directory} belongs to a run with another base model, model.lora, prompts, seed or "
                f"sampling (fingerprint {manifest['fingerprint'][:12]}, now {fingerprint[:12]}): choose another "
                "run.name, or undo the change"
            )
        tensors, moments = get_state_dict(model, optimizer)
        state: dict[str, Any] = {"model": _trained(model, tensors), "optimizer": moments}
        state_dict_loader.load(state, checkpoint_id=directory)
        whole = tensors | state["model"]
        set_state_dict(model, optimizer, model_state_dict=whole, optim_state_dict=state["optimizer"])
        body: dict[str, Any] = msgpack.unpackb((directory / STATE).read_bytes(), raw=False, strict_map_key=False)
        torch.set_rng_state(torch.frombuffer(bytearray(body["random"]), dtype=torch.uint8))
        return Progress(step, manifest["version"], manifest["published_step"], fingerprint, body["z"])

    def keep(self, newest: int, committed: int) -> None:
        """Delete all but the `newest` checkpoints; the committed one always stays. Rank 0 only acts."""
        if self.ranks.first:
            for step in self.steps()[:-newest]:
                if step != committed:
                    gone = self.path / f".step-{step:08d}.gone"
                    os.rename(self.directory(step), gone)
                    shutil.rmtree(gone, ignore_errors=True)


def is_checkpoint(directory: Path) -> bool:
    """Whether this is one of the directories that `Checkpoints` writes."""
    return _FINAL.fullmatch(directory.name) is not None and (directory / MANIFEST).is_file()


def load_weights(directory: Path, model: nn.Module) -> None:
    """Check a checkpoint and load its model, without optimiser, into one unsharded `model`. No ranks needed.

    Raises CheckpointCorrupt.
    """
    found = _FINAL.fullmatch(directory.name)
    manifest, problem = _manifest(directory, int(found[1]) if found else -1)
    for name in sorted(manifest.get("files", {})):
        problem = problem or _compare(directory / name, manifest["files"][name])
    if problem:
        raise CheckpointCorrupt(f"checkpoint {directory}: {problem}. Restore it from a copy, or name another one")
    tensors = get_model_state_dict(model)
    state = {"model": _trained(model, tensors)}
    stored = FileSystemReader(directory).read_metadata().state_dict_metadata
    for key, tensor in state["model"].items():
        size = getattr(stored.get(f"model.{key}"), "size", None)
        if size != tensor.shape:
            there = "is not in it" if size is None else f"is {tuple(size)} in it"
            raise CheckpointCorrupt(
                f"checkpoint {directory}: {key} {tuple(tensor.shape)} {there}; give the configuration of the run that "
                "wrote it, with its model.path and model.lora"
            )
    state_dict_loader.load(state, checkpoint_id=directory, no_dist=True)
    set_model_state_dict(model, tensors | state["model"])


def _trained(model: nn.Module, tensors: dict[str, Any]) -> dict[str, Any]:
    """Of a model's tensors, those that a checkpoint holds: all but frozen parameters, which the base's files hold."""
    frozen = {name for name, value in model.named_parameters(remove_duplicate=False) if not value.requires_grad}
    return {name: tensor for name, tensor in tensors.items() if name not in frozen}


def _manifest(directory: Path, step: int) -> tuple[dict[str, Any], str]:
    """(manifest, what is wrong with it)."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
    except OSError as error:
        return {}, f"{MANIFEST} cannot be read ({error.strerror})"
    except ValueError:
        return {}, f"{MANIFEST} is not JSON"
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        return {}, f"{MANIFEST} is of schema {schema}, not of schema {SCHEMA}, which this release reads"
    expected = {"step": int, "version": int, "published_step": int, "fingerprint": str, "files": dict}
    for name, kind in expected.items():
        if not isinstance(manifest.get(name), kind):
            return {}, f"{MANIFEST}: {name} is missing or not {kind.__name__}"
    if manifest["step"] != step:
        return {}, f"{MANIFEST} is of step {manifest['step']}"
    if not {STATE, ".metadata"} <= manifest["files"].keys():
        return {}, f"{MANIFEST} does not list {STATE} and .metadata"
    return manifest, ""


def _digest(file: Path) -> dict[str, Any]:
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
    return {"bytes": file.stat().st_size, "sha256": digest}


def _compare(file: Path, expected: dict[str, Any]) -> str:
    """What differs from the manifest, or an empty string."""
    if not file.is_file():
        return f"{file.name}: expected {expected['bytes']} bytes, found no file"
    size = file.stat().st_size
    if size != expected["bytes"]:
        return f"{file.name}: expected {expected['bytes']} bytes, found {size}"
    found = _digest(file)["sha256"]
    if found != expected["sha256"]:
        return f"{file.name}: expected sha256 {expected['sha256'][:12]}…, found {found[:12]}…"
    return ""


def _write(file: Path, data: bytes) -> None:
    with open(file, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
