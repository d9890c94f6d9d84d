"""Checkpoints made by somebody else: whatever their files hold is read as data, or refused in one line.

Each is a real checkpoint with something put into it and a manifest that fits.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, TensorStorageMetadata

from learner.model.checkpoint import CheckpointCorrupt, CheckpointName, Checkpoints, Progress, load_weights
from learner.model.model import Scorer, load, shard
from learner.ranks import Ranks
from tests.learner.learner_rig import save_model

SAVED, NAME = Progress(1, "f", {3: b"x"}), CheckpointName(1, 1)


class Runs:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(base model's directory, store, whole checkpoint's directory, policy, optimiser)."""
    path = tmp_path_factory.mktemp("made")
    base = save_model(path / "base")
    ranks = Ranks("cpu", 60)
    try:
        policy = shard(load(base, torch.float32), ranks.mesh, compute=torch.float32, trainable=True)
        optimizer = torch.optim.AdamW(policy.parameters())
        store = Checkpoints(path / "checkpoints", ranks)
        yield base, store, store.directory(store.save(SAVED, 1, policy, optimizer)), policy, optimizer
    finally:
        ranks.close()


def seal(directory: Path) -> None:
    """Make the manifest fit the files."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in list(manifest["files"]):
        data = (directory / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(manifest))


def metadata_of(directory: Path) -> Metadata:
    return FileSystemReader(directory).read_metadata()


def with_metadata(change: Callable[[Metadata], Any]) -> Callable[[Path, Path], None]:
    """A change of the unpickled metadata, pickled again; what it returns, if anything, is pickled instead."""

    def apply(directory: Path, ran: Path) -> None:
        metadata = metadata_of(directory)
        data = change(metadata)
        (directory / ".metadata").write_bytes(data if isinstance(data, bytes) else pickle.dumps(data or metadata))

    return apply


def first_tensor(metadata: Metadata) -> TensorStorageMetadata:
    return next(entry for entry in metadata.state_dict_metadata.values() if isinstance(entry, TensorStorageMetadata))


def moved(**fields: Any) -> Callable[[Path, Path], None]:
    """Every place of the metadata with some of its fields replaced."""

    def change(metadata: Metadata) -> None:
        for key, place in metadata.storage_data.items():
            metadata.storage_data[key] = _StorageInfo(**{**place.__dict__, **fields})

    return with_metadata(change)


def huge(metadata: Metadata) -> None:
    first_tensor(metadata).chunks = [ChunkStorageMetadata(torch.Size([0, 0]), torch.Size([1 << 40, 1 << 40]))]


def nested(metadata: Metadata) -> bytes:
    """Tuples of tuples as a key: to hash it would take 2**64 steps."""
    deep = b"".join(b"\x94h" + bytes([level]) + b"h" + bytes([level]) + b"\x86" for level in range(64))
    return b"\x80\x04)" + deep + b"\x94}h@K\x01s."


def repeated(metadata: Metadata) -> None:
    """One list of parts in many tensors: small in the file, their product in memory."""
    entry = first_tensor(metadata)
    entry.chunks = entry.chunks * 500
    entries = {str(n): TensorStorageMetadata(entry.properties, entry.size, entry.chunks) for n in range(500)}
    metadata.state_dict_metadata.update(entries)


def long_names(metadata: Metadata) -> bytes:
    """Classes whose names are as long as the file: each mention would be a copy."""
    name = b"X" + (1 << 16).to_bytes(4, "little") + b"a" * (1 << 16)
    return b"\x80\x04" + name + b"\x94" + b"h\x00h\x00\x93" * 100 + b"."


def in_entries(value: Callable[[Path], Any]) -> Callable[[Path, Path], None]:
    """Another value, pickled by torch.save, in place of every entry that is no tensor."""

    def apply(directory: Path, ran: Path) -> None:
        stream = io.BytesIO()
        torch.save(value(ran), stream)
        metadata = metadata_of(directory)
        for key, place in metadata.storage_data.items():
            if key.offset is None:
                file = directory / place.relative_path
                at = file.stat().st_size
                file.write_bytes(file.read_bytes() + stream.getvalue())
                metadata.storage_data[key] = _StorageInfo(place.relative_path, at, len(stream.getvalue()))
        (directory / ".metadata").write_bytes(pickle.dumps(metadata))

    return apply


def bomb(directory: Path, ran: Path) -> None:
    """A tensor's archive that is a thousand times larger unpacked."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(50 << 20))
    name = "__0_7.distcp"
    (directory / name).write_bytes(stream.getvalue())
    moved(relative_path=name, offset=0, length=len(stream.getvalue()))(directory, ran)
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"][name] = {}
    (directory / "manifest.json").write_text(json.dumps(manifest))


def other_rank(directory: Path, ran: Path) -> None:
    """Metadata that cannot be read, beside those of one rank, which PyTorch's loader takes then."""
    (directory / ".metadata").write_bytes(b"")
    (directory / "__0.metadata").write_bytes(pickle.dumps(Runs(ran)))


def state(**fields: Any) -> Callable[[Path, Path], None]:
    def apply(directory: Path, ran: Path) -> None:
        path = directory / "state.msgpack"
        body = msgpack.unpackb(path.read_bytes(), strict_map_key=False)
        path.write_bytes(msgpack.packb(body | fields))

    return apply


HOSTILE: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "metadata that run code": (
        lambda directory, ran: (directory / ".metadata").write_bytes(pickle.dumps(Runs(ran))) and None,
        r"mkdir",
    ),
    "metadata with a part that runs code": (
        lambda directory, ran: with_metadata(lambda m: setattr(m, "planner_data", Runs(ran)))(directory, ran),
        r"mkdir",
    ),
    "metadata of protocol 0": (
        lambda directory, ran: (directory / ".metadata").write_bytes(pickle.dumps(Runs(ran), 0)) and None,
        r"GLOBAL, which",
    ),
    "the metadata of one rank": (other_rank, r"\.metadata"),
    "a key that cannot be hashed": (with_metadata(nested), r"\.metadata"),
    "a place above the directory": (moved(relative_path="../../x"), r"no data file of this checkpoint"),
    "a place elsewhere": (moved(relative_path="/etc/passwd"), r"no data file of this checkpoint"),
    "a place beyond the end": (moved(length=1 << 50), r"refers to bytes"),
    "a place before the beginning": (moved(offset=-5), r"where a count belongs"),
    "a transformation": (moved(transform_descriptors=["zstd"]), r"transformation"),
    "a part larger than its tensor": (with_metadata(huge), r"has a part at|dimensions"),
    "parts without number": (with_metadata(repeated), r"more parts of tensors than"),
    "names without end": (with_metadata(long_names), r"names a class in more than"),
    "a packed archive": (bomb, r"larger unpacked"),
    "random state of no generator": (state(random=b"12"), r"random state"),
    "Z statistics by name": (state(z={"x": 1}), r"Z statistics"),
}
ENTRIES: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "entries that run code": (in_entries(Runs), r"[Ww]eights.?only|mkdir"),
    "entries of another kind": (in_entries(lambda ran: {"lr": [1]}), r"expected numbers or names"),
}


def refused(call: Callable[[], object], ran: Path, match: str) -> None:
    with pytest.raises(CheckpointCorrupt, match=match) as caught:
        call()
    assert not ran.exists()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900


@pytest.mark.parametrize("name", [*HOSTILE, *ENTRIES])
def test_a_hostile_checkpoint_runs_nothing_and_is_refused_in_a_line(made: Any, tmp_path: Path, name: str) -> None:
    base, store, whole, policy, optimizer = made
    there = tmp_path / whole.name
    shutil.copytree(whole, there)
    ran = tmp_path / "ran"
    change, match = (HOSTILE | ENTRIES)[name]
    change(there, ran)
    seal(there)
    resuming = Checkpoints(tmp_path, store.ranks)
    refused(lambda: resuming.load(NAME, policy, optimizer, fingerprint="f"), ran, match)
    if name in HOSTILE and "state" not in name and "statistics" not in name:  # what an evaluation reads as well
        refused(lambda: load_weights(there, Scorer(load(base, torch.float32))), ran, match)


@pytest.mark.parametrize("kind", ["pipe", "socket", "directory", "link", "listed elsewhere", "endless"])
@pytest.mark.parametrize("file", ["manifest.json", ".metadata", "state.msgpack", "__0_0.distcp"])
def test_special_files_are_refused_without_being_opened(made: Any, tmp_path: Path, kind: str, file: str) -> None:
    _, store, whole, policy, optimizer = made
    there = tmp_path / whole.name
    shutil.copytree(whole, there)
    path = there / file
    if kind == "listed elsewhere":
        manifest = json.loads((there / "manifest.json").read_text())
        manifest["files"][f"../{there.name}/{file}"] = {"bytes": 1, "sha256": "0"}
        (there / "manifest.json").write_text(json.dumps(manifest))
    else:
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            os.mknod(path, stat.S_IFSOCK | 0o600)  # binding one has a limit of 107 bytes for the path
        elif kind == "directory":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero" if kind == "endless" else whole / file)
            if (kind, file) == ("link", "manifest.json"):
                pytest.skip("a manifest may be a link: what it says is checked")
    resuming = Checkpoints(tmp_path, store.ranks)
    refused(lambda: resuming.load(NAME, policy, optimizer, fingerprint="f"), tmp_path / "ran", file)


def test_what_was_saved_is_what_is_loaded(made: Any) -> None:
    _, store, _, policy, optimizer = made
    wanted = {name: value.full_tensor() for name, value in policy.named_parameters()}
    with torch.no_grad():
        for value in policy.parameters():
            value.mul_(2)
    optimizer.param_groups[0]["lr"] = 9.0
    assert store.load(NAME, policy, optimizer, fingerprint="f") == SAVED
    assert all(torch.equal(value.full_tensor(), wanted[name]) for name, value in policy.named_parameters())
    assert optimizer.param_groups[0]["lr"] == 1e-3 and isinstance(optimizer.param_groups[0]["betas"], tuple)
