"""Loading of what a distributed checkpoint holds, as data: no byte of it is ever run.

PyTorch's own loader unpickles `.metadata`, and every entry that is no tensor. Here the metadata are read by
metadata_file.py, and entries with `weights_only`, each out of an archive that is no larger unpacked than it is on disk.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import _traverse, state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from broker.plain_files import check_plain
from learner.model import metadata_file


class Unreadable(ValueError):
    """A checkpoint that does not hold what is to be loaded; the message is one line."""


def load(state: dict[str, Any], directory: Path, files: Iterable[str], *, alone: bool = False) -> None:
    """Fill the tensors of `state`, and replace its other values, from the checkpoint in `directory`.

    Collective, unless `alone`. `files`: the names of the checkpoint's files, which were compared with its manifest.
    Raises Unreadable, on every rank, when anything is missing, does not fit, or is not plain data.
    """
    reader = _Reader(directory, files)
    try:
        state_dict_loader.load(state, storage_reader=reader, planner=_Planner(), no_dist=alone)
    except CheckpointException as error:
        _, (first, _) = next(iter(sorted(error.failures.items())))
        text = " ".join(str(first).split()) or type(first).__name__
        raise Unreadable(text.rpartition("metadata read failed: ")[2][:300]) from None  # PyTorch's words around ours


def shapes(directory: Path, files: Iterable[str]) -> dict[str, torch.Size]:
    """The size of every tensor in the checkpoint, by name. Raises Unreadable."""
    try:
        stored = _Reader(directory, files).read_metadata().state_dict_metadata
    except (OSError, ValueError) as error:
        raise Unreadable(str(error)) from None
    return {name: entry.size for name, entry in stored.items() if hasattr(entry, "size")}


class _Reader(FileSystemReader):
    """PyTorch's reader without its unpickling, and of the manifest's files only."""

    def __init__(self, directory: Path, files: Iterable[str]) -> None:
        super().__init__(directory)
        self._files = sorted(files)

    def read_metadata(self) -> Metadata:  # no `rank`: PyTorch would fall back to another file
        sizes: dict[str, int] = {}
        for name in self._files:
            try:
                sizes[name] = check_plain(Path(self.path, name), links=False).st_size
            except OSError as error:
                raise Unreadable(f"{name}: {error.strerror}") from None
        metadata = metadata_file.read(Path(self.path), sizes)
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata

    def _slice_file(self, file: Any, sinfo: _StorageInfo) -> Any:
        try:
            with (
                io.BufferedReader(_Part(file.fileno(), sinfo.offset, sinfo.length)) as part,
                zipfile.ZipFile(part) as archive,
            ):
                members = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
            raise Unreadable(
                f"{sinfo.relative_path}: no archive of a tensor at byte {sinfo.offset} ({error})"
            ) from None
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > sinfo.length:
            raise Unreadable(f"{sinfo.relative_path}: the archive at byte {sinfo.offset} is larger unpacked")
        return super()._slice_file(file, sinfo)


class _Part(io.RawIOBase):
    """A part of an open file, as a file. PyTorch's own view cannot be sought from its end, where an archive begins."""

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        self._descriptor, self._offset, self._length, self._at = descriptor, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError("before the beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._length - self._at))
        found = os.pread(self._descriptor, wanted, self._offset + self._at)
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)


class _Planner(DefaultLoadPlanner):
    """PyTorch's planner without its unpickling of entries that are no tensors."""

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        found = torch.load(value, weights_only=True, map_location="cpu")
        if not _is_plain(found):
            raise Unreadable(f"{name} is a {type(found).__name__}, expected numbers or names")
        _traverse.set_element(self.original_state_dict, self.mappings[name], found)


def _is_plain(value: Any) -> bool:
    """Whether this is what an optimiser's settings are made of: a number, a name, nothing, or a row of those."""
    if isinstance(value, list | tuple):
        return all(isinstance(one, int | float | str | None) for one in value)
    return isinstance(value, int | float | str | None)
