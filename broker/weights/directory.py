"""Versions as files in a directory that the learner and all actors see (usually `<run>/weights`).

    <directory>/v00000007-e0002/model.safetensors, config.json, …, manifest.json [, .delta]

is version 7 as the learner of epoch 2 wrote it. The writer fills a hidden directory, then `publish` hashes and syncs
every file, writes the manifest last and renames the directory into place: a reader sees a whole version or none. A
version is renamed away before it is deleted, so a reader in the middle of it gets WeightsMissing and takes a newer one.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from broker.errors import WeightsError
from broker.queue.state import VersionName
from broker.weights.copying import CopyStats, digest, for_each
from broker.weights.delta import DELTA, LARGEST_SHARE, DeltaUnusable, diff, word_size
from broker.weights.manifest import MANIFEST, PLAIN, Delta, File, Manifest
from broker.weights.reader import DirectoryReader, leftovers_in, version_path, versions_in
from broker.weights.store import Fetched


class DirectoryStore:
    """The versions in the directory `path`; a VersionStore that is read in place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begun: dict[VersionName, Path] = {}

    # --- the writer

    def begin(self, name: VersionName) -> Path:
        """See VersionStore. The directory is hidden, next to where the version will be."""
        temporary = self._hidden(name, "partial")
        temporary.mkdir(parents=True)
        abandoned = self._begun.pop(name, None)
        if abandoned is not None:
            shutil.rmtree(abandoned, ignore_errors=True)
        self._begun[name] = temporary
        return temporary

    def publish(
        self, name: VersionName, meta: dict[str, Any] | None = None, *, base: VersionName | None = None
    ) -> Manifest:
        """See VersionStore."""
        temporary = self._begun.get(name)
        if temporary is None:
            raise WeightsError(f"version {name} was not begun; call begin({name}) and write the files there first")
        names = sorted(entry.name for entry in temporary.iterdir())
        for file_name in names:
            entry = temporary / file_name
            if not stat.S_ISREG(entry.lstat().st_mode) or file_name == MANIFEST or not PLAIN.fullmatch(file_name):
                raise WeightsError(f"{entry} is not a plain visible file of its own name; a version holds only such")
        if not names:
            raise WeightsError(f"{temporary} is empty; write the files of version {name} there before publish")
        files: dict[str, File] = {}

        def seal(file_name: str, stats: CopyStats) -> None:
            with open(temporary / file_name, "rb", buffering=0) as file:
                found = digest(file, stats)
                os.fsync(file.fileno())
                files[file_name] = File(bytes=os.fstat(file.fileno()).st_size, sha256=found)

        for_each(names, seal, CopyStats())
        files = {file_name: files[file_name] for file_name in names}
        manifest = Manifest(
            version=name.number, epoch=name.epoch, published_at=time.time(), files=files, meta=meta or {}
        )
        if base is not None:
            manifest = manifest.model_copy(update={"delta": self._write_delta(temporary, manifest, base)})
        with open(temporary / MANIFEST, "x", encoding="utf-8") as written:
            written.write(manifest.text())
            written.flush()
            os.fsync(written.fileno())
        _sync(temporary)
        del self._begun[name]
        try:
            os.rename(temporary, version_path(self.path, name))
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            shutil.rmtree(temporary, ignore_errors=True)  # published already by an earlier try, whose reply was lost
            return self.manifest(name)
        _sync(self.path)
        return manifest

    def keep(self, wanted: Collection[VersionName], epoch: int) -> list[VersionName]:
        """See VersionStore."""
        gone = [name for name in self.versions() if name.epoch <= epoch and name not in wanted]
        for name in gone:
            self._remove(name)
        ours = set(self._begun.values())
        for entry in leftovers_in(self.path, epoch):
            if entry not in ours:
                shutil.rmtree(entry, ignore_errors=True)
        return gone

    def _write_delta(self, temporary: Path, manifest: Manifest, base_name: VersionName) -> Delta | None:
        """Write the delta against version `base_name`.

        None, and no file, when that version is gone or cannot be read, or when the delta is too large.
        """
        limit, path = int(manifest.bytes * LARGEST_SHARE), temporary / DELTA
        try:
            with self.open(base_name) as base, open(path, "xb") as written:
                for name, file in sorted(manifest.files.items()):
                    for piece in self._differences(base, name, temporary / name, file.bytes):
                        written.write(piece)
                        if written.tell() > limit:
                            raise DeltaUnusable(f"the delta of version {manifest.version} is larger than {limit} bytes")
                written.flush()
                os.fsync(written.fileno())
                return Delta(
                    base=base_name.number,
                    base_epoch=base_name.epoch,
                    identity=base.manifest.identity,
                    bytes=written.tell(),
                )
        except WeightsError:  # the full files are there; a damaged base is reported by those who read it
            path.unlink(missing_ok=True)
            return None

    def _differences(self, base: DirectoryReader, name: str, path: Path, size: int) -> Iterator[bytes]:
        before = base.manifest.files.get(name)
        with open(path, "rb") as new:
            if before is None or before.bytes != size:
                yield from diff(None, new, size, 1)
                return
            word = word_size(new, size)
            new.seek(0)
            with base.file(name) as old:
                yield from diff(old, new, size, word)

    # --- readers

    def versions(self) -> list[VersionName]:
        """See VersionStore."""
        return versions_in(self.path)

    def manifest(self, name: VersionName) -> Manifest:
        """See VersionStore."""
        with self.open(name) as reader:
            return reader.manifest

    def open(self, name: VersionName) -> DirectoryReader:
        """See VersionStore."""
        return DirectoryReader(self.path, name)

    def fetch(self, name: VersionName) -> Fetched:
        """See VersionStore. The directory is the published one."""
        start, stats = time.perf_counter(), CopyStats()
        with self.open(name) as reader:
            reader.verify(stats)
        identity = reader.manifest.identity
        return Fetched(name.number, identity, reader.path, stats.shares(time.perf_counter() - start), stats.bytes)

    # --- paths

    def _hidden(self, name: VersionName, what: str) -> Path:
        return self.path / f".{name}.{what}.{secrets.token_hex(4)}"

    def _remove(self, name: VersionName) -> None:
        """Rename out of readers' sight, then delete."""
        gone = self._hidden(name, "gone")
        with suppress(FileNotFoundError):  # a replaced learner that has not noticed yet removes what it no longer needs
            os.rename(version_path(self.path, name), gone)
        shutil.rmtree(gone, ignore_errors=True)  # what stays (a reader's open file on NFS) is removed by a later keep


def _sync(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
