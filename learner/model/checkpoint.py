"""Checkpoints: the trained part of the model, optimiser, step, version, Z statistics and random state.

    <directory>/step-00000010-e0002/   the sharded tensors (PyTorch's format), state.msgpack, manifest.json

is step 10 as the learner of epoch 2 wrote it: no two learners write one checkpoint. It is written to a hidden
directory, hashed and synced, and renamed into place: a checkpoint is whole or absent. Which one counts is not decided
here but by the broker, whose commit names it. Tensors are stored by name and global offset, so a checkpoint of any
number of ranks loads on any other. A checkpoint that does not match its manifest is refused; another one is never
chosen silently.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import torch
from torch import nn
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)

from broker.errors import EX_DATA, SieveError
from broker.plain_files import check_plain, open_plain, read_plain
from learner.model import stored_tensors
from learner.ranks import Ranks

MANIFEST, STATE = "manifest.json", "state.msgpack"
SCHEMA = 2
MANIFEST_BYTES, STATE_BYTES = 64 << 20, 1 << 30
_FILE = re.compile(r"__[0-9]{1,9}_[0-9]{1,9}\.distcp|\.metadata|state\.msgpack")
"""What a manifest may list."""
_NAME = re.compile(r"step-([0-9]{8,12})-e([0-9]{4,12})")
_HIDDEN = re.compile(r"\.step-[0-9]{8,12}-e([0-9]{4,12})\.[a-z]+")
"""A checkpoint that is being written or removed."""


class CheckpointName(NamedTuple):
    """Step and epoch of a checkpoint."""

    step: int
    epoch: int
    """The learner's epoch in which it was written."""

    def __str__(self) -> str:
        """Name of its directory."""
        return f"step-{self.step:08d}-e{self.epoch:04d}"

    @classmethod
    def parse(cls, text: str) -> CheckpointName | None:
        """The name that `text` is, None when it is not that of a checkpoint."""
        found = _NAME.fullmatch(text)
        return cls(int(found[1]), int(found[2])) if found else None


class CheckpointCorrupt(SieveError):
    """A checkpoint that does not match its manifest, or that belongs to another run or release."""

    exit_code = EX_DATA


@dataclass(frozen=True)
class Progress:
    """Where the run stands, beside model and optimiser."""

    step: int = 0
    fingerprint: str = ""
    z: dict[int, bytes] = field(default_factory=dict)
    """Packed Z statistics of each prompt."""


class Checkpoints:
    """The checkpoints of one run. `save` and `load` are collective: every rank calls them."""

    def __init__(self, path: Path, ranks: Ranks) -> None:
        self.path, self.ranks = path, ranks

    def names(self) -> list[CheckpointName]:
        """What is there, committed or not, in order."""
        if not self.path.is_dir():
            return []
        found = (CheckpointName.parse(entry.name) for entry in self.path.iterdir())
        return sorted(name for name in found if name is not None)

    def directory(self, name: CheckpointName) -> Path:
        return self.path / str(name)

    def save(
        self, progress: Progress, epoch: int, model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> CheckpointName:
        """Write the checkpoint of `progress.step`; durable when it returns. One that is there already, from an earlier
        try of this learner whose commit failed, stays."""
        name = CheckpointName(progress.step, epoch)
        final, partial = self.directory(name), self.path / f".{name}.partial"
        if self.ranks.tell(final.exists() if self.ranks.first else None):
            return name
        if self.ranks.first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.ranks.barrier()
        tensors, moments = get_state_dict(model, optimizer)
        try:
            state_dict_saver.save({"model": _trained(model, tensors), "optimizer": moments}, checkpoint_id=partial)
        except CheckpointException as error:  # no Exception: it would end the process past every handler
            _, (first, _) = min(error.failures.items())
            raise first from None
        mine = sorted(partial.glob(f"__{self.ranks.rank}_*"))
        found = self.ranks.gather({file.name: _digest(file) for file in mine})
        if self.ranks.first:
            body = {
                "schema": SCHEMA,
                "z": progress.z,
                "random": torch.get_rng_state().numpy().tobytes(),
            }
            _write(partial / STATE, msgpack.packb(body, use_bin_type=True))
            files = {file: digest for part in found for file, digest in part.items()}
            files |= {file: _digest(partial / file) for file in (STATE, ".metadata")}
            manifest = {
                "schema": SCHEMA,
                "step": progress.step,
                "epoch": epoch,
                "fingerprint": progress.fingerprint,
                "ranks": self.ranks.world,
                "files": files,
            }
            _write(partial / MANIFEST, json.dumps(manifest, indent=1).encode())
            _sync(partial)
            os.rename(partial, final)
            _sync(self.path)
        self.ranks.barrier()
        return name

    def load(
        self,
        name: CheckpointName,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        fingerprint: str,
        remedy: str = "Restore it from a copy",
    ) -> Progress:
        """Check and load a checkpoint into model and optimiser.

        Raises CheckpointCorrupt on every rank, with `remedy` when the files are not what was written.
        """
        directory = self.directory(name)
        manifest, problem = _manifest(directory, name)
        files = sorted(manifest.get("files", {}))
        for file in files[self.ranks.rank :: self.ranks.world]:
            problem = problem or _compare(directory / file, manifest["files"][file])
        problems = [text for text in self.ranks.gather(problem) if text]
        if problems:
            raise CheckpointCorrupt(f"checkpoint {directory}: {problems[0]}. {remedy}")
        if manifest["fingerprint"] != fingerprint:
            raise CheckpointCorrupt(
                f"checkpoint {directory} belongs to a run with another base model, model.lora, prompts, seed or "
                f"sampling (fingerprint {manifest['fingerprint'][:12]}, now {fingerprint[:12]}): choose another "
                "run.name, or undo the change"
            )
        tensors, moments = get_state_dict(model, optimizer)
        state: dict[str, Any] = {"model": _trained(model, tensors), "optimizer": moments}
        try:
            z, random = _side_state(directory)
            stored_tensors.load(state, directory, manifest["files"])
        except ValueError as error:
            raise CheckpointCorrupt(
                f"checkpoint {directory}: {error}. Restore it from a copy, and load only checkpoints of your own runs"
            ) from None
        whole = tensors | state["model"]
        set_state_dict(model, optimizer, model_state_dict=whole, optim_state_dict=state["optimizer"])
        torch.set_rng_state(random)
        return Progress(name.step, fingerprint, z)

    def keep(self, wanted: Collection[CheckpointName], epoch: int) -> None:
        """Delete all checkpoints but `wanted` that learners up to `epoch` wrote, and what they left half-written (rank
        0). Those of later epochs are not this learner's to judge."""
        for name in self.names():
            if name.epoch <= epoch and name not in wanted:
                gone = self.path / f".{name}.gone"
                with suppress(FileNotFoundError):  # a replaced learner that has not noticed yet keeps fewer
                    os.rename(self.directory(name), gone)
        for entry in list(self.path.iterdir()) if self.path.is_dir() else ():
            found = _HIDDEN.fullmatch(entry.name)
            if found and int(found[1]) <= epoch:
                shutil.rmtree(entry, ignore_errors=True)


def verify(directory: Path) -> tuple[CheckpointName, str, dict[int, bytes]]:
    """Name, fingerprint and Z statistics of a checkpoint, every file of which is what was written.

    Raises CheckpointCorrupt.
    """
    name = CheckpointName.parse(directory.name)
    manifest, problem = _manifest(directory, name)
    for file in sorted(manifest.get("files", {})):
        problem = problem or _compare(directory / file, manifest["files"][file])
    if problem or name is None:
        raise CheckpointCorrupt(f"checkpoint {directory}: {problem}")
    try:
        z, _ = _side_state(directory)
    except ValueError as error:
        raise CheckpointCorrupt(f"checkpoint {directory}: {error}") from None
    return name, str(manifest["fingerprint"]), z


def is_checkpoint(directory: Path) -> bool:
    """Whether this is one of the directories that `Checkpoints` writes."""
    return CheckpointName.parse(directory.name) is not None and (directory / MANIFEST).is_file()


def load_weights(directory: Path, model: nn.Module) -> None:
    """Check a checkpoint and load its model, without optimiser, into one unsharded `model`. No ranks needed.

    Raises CheckpointCorrupt.
    """
    manifest, problem = _manifest(directory, CheckpointName.parse(directory.name))
    for name in sorted(manifest.get("files", {})):
        problem = problem or _compare(directory / name, manifest["files"][name])
    if problem:
        raise CheckpointCorrupt(f"checkpoint {directory}: {problem}. Restore it from a copy, or name another one")
    tensors = get_model_state_dict(model)
    state = {"model": _trained(model, tensors)}
    try:
        stored = stored_tensors.shapes(directory, manifest["files"])
        for key, tensor in state["model"].items():
            size = stored.get(f"model.{key}")
            if size != tensor.shape:
                there = "is not in it" if size is None else f"is {tuple(size)} in it"
                raise CheckpointCorrupt(
                    f"checkpoint {directory}: {key} {tuple(tensor.shape)} {there}; give the configuration of the run "
                    "that wrote it, with its model.path and model.lora"
                )
        stored_tensors.load(state, directory, manifest["files"], alone=True)
    except ValueError as error:
        raise CheckpointCorrupt(f"checkpoint {directory}: {error}. Restore it from a copy, or name another") from None
    set_model_state_dict(model, tensors | state["model"])


def _trained(model: nn.Module, tensors: dict[str, Any]) -> dict[str, Any]:
    """Of a model's tensors, those that a checkpoint holds: all but frozen parameters, which the base's files hold."""
    frozen = {name for name, value in model.named_parameters(remove_duplicate=False) if not value.requires_grad}
    return {name: tensor for name, tensor in tensors.items() if name not in frozen}


def _manifest(directory: Path, name: CheckpointName | None) -> tuple[dict[str, Any], str]:
    """(manifest, what is wrong with it)."""
    try:
        manifest = json.loads(read_plain(directory / MANIFEST, MANIFEST_BYTES))
    except OSError as error:
        return {}, f"{MANIFEST} cannot be read ({error.strerror})"
    except (ValueError, RecursionError):
        return {}, f"{MANIFEST} is not JSON"
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        return {}, f"{MANIFEST} is of schema {schema}, not of schema {SCHEMA}, which this release reads"
    expected = {"step": int, "epoch": int, "fingerprint": str, "files": dict}
    for key, kind in expected.items():
        if not isinstance(manifest.get(key), kind):
            return {}, f"{MANIFEST}: {key} is missing or not {kind.__name__}"
    found = CheckpointName(manifest["step"], manifest["epoch"])
    if found != name:
        return {}, f"{MANIFEST} is of {found}"
    if not {STATE, ".metadata"} <= manifest["files"].keys():
        return {}, f"{MANIFEST} does not list {STATE} and .metadata"
    for listed, file in manifest["files"].items():
        kinds = [type(file.get(part)) for part in ("bytes", "sha256")] if isinstance(file, dict) else []
        if kinds != [int, str] or not _FILE.fullmatch(listed):
            return {}, f"{MANIFEST} has no size and sha256 for {listed[:80]!r}, or it is no file of a checkpoint"
    return manifest, ""


def _side_state(directory: Path) -> tuple[dict[int, bytes], torch.Tensor]:
    """Z statistics and random state. Raises ValueError."""
    try:
        body: Any = msgpack.unpackb(read_plain(directory / STATE, STATE_BYTES), raw=False, strict_map_key=False)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{STATE} cannot be read ({getattr(error, 'strerror', None) or str(error)[:120]})") from None
    z, random = (body.get("z"), body.get("random")) if isinstance(body, dict) else (None, None)
    if not isinstance(z, dict) or not all(type(key) is int and type(value) is bytes for key, value in z.items()):
        raise ValueError(f"{STATE} has no Z statistics by prompt")
    if not isinstance(random, bytes) or not random:
        raise ValueError(f"{STATE} has no random state")
    state = torch.frombuffer(bytearray(random), dtype=torch.uint8)
    try:
        torch.Generator().set_state(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{STATE} has a random state that cannot be set ({str(error).splitlines()[0][:120]})"
        ) from None
    return z, state


def _digest(file: Path) -> dict[str, Any]:
    with open_plain(file, links=False) as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
    return {"bytes": file.stat().st_size, "sha256": digest}


def _compare(file: Path, expected: dict[str, Any]) -> str:
    """What differs from the manifest, or an empty string."""
    try:
        size = check_plain(file, links=False).st_size
    except FileNotFoundError:
        return f"{file.name}: expected {expected['bytes']} bytes, found no file"
    except OSError as error:
        return f"{file.name}: {error.strerror}"
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
