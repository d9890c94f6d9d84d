"""Versions as files in a directory that the learner and all actors see (usually `<run>/weights`).

    <directory>/v00000007/model.safetensors, config.json, …, manifest.json [, .delta]

The writer fills a hidden directory, then `publish` hashes and syncs every file, writes the manifest last and renames
the directory into place: a reader sees a whole version or none. A version is renamed away before it is deleted, so a
reader in the middle of it gets WeightsMissing and takes a newer one.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from broker.errors import WeightsError
from broker.weights.copying import CopyStats, digest, for_each
from broker.weights.delta import DELTA, LARGEST_SHARE, DeltaUnusable, diff, word_size
from broker.weights.manifest import MANIFEST, PLAIN, Delta, File, Manifest
from broker.weights.reader import HIDDEN, DirectoryReader, version_path, versions_in
from broker.weights.store import Fetched

LEFTOVER_SECONDS = 900.0
"""A hidden directory untouched for this long belongs to a writer that died."""


class DirectoryStore:
    """The versions in the directory `path`; a VersionStore that is read in place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begun: dict[int, Path] = {}

    # --- the writer

    def begin(self, version: int) -> Path:
        """See VersionStore. The directory is hidden, next to where the version will be."""
        temporary = self._hidden(version, "partial")
        temporary.mkdir(parents=True)
        abandoned = self._begun.pop(version, None)
        if abandoned is not None:
            shutil.rmtree(abandoned, ignore_errors=True)
        self._begun[version] = temporary
        return temporary

    def publish(self, version: int, meta: dict[str, Any] | None = None, *, delta: bool = False) -> None:
        """See VersionStore."""
        temporary = self._begun.get(version)
        if temporary is None:
            raise WeightsError(
                f"version {version} was not begun; call begin({version}) and write the files there first"
            )
        names = sorted(entry.name for entry in temporary.iterdir())
        for name in names:
            entry = temporary / name
            if not stat.S_ISREG(entry.lstat().st_mode) or name == MANIFEST or not PLAIN.fullmatch(name):
                raise WeightsError(f"{entry} is not a plain visible file of its own name; a version holds only such")
        if not names:
            raise WeightsError(f"{temporary} is empty; write the files of version {version} there before publish")
        files: dict[str, File] = {}

        def seal(name: str, stats: CopyStats) -> None:
            with open(temporary / name, "rb", buffering=0) as file:
                found = digest(file, stats)
                os.fsync(file.fileno())
                files[name] = File(bytes=os.fstat(file.fileno()).st_size, sha256=found)

        for_each(names, seal, CopyStats())
        files = {name: files[name] for name in names}
        manifest = Manifest(version=version, published_at=time.time(), files=files, meta=meta or {})
        if delta:
            manifest = manifest.model_copy(update={"delta": self._write_delta(temporary, manifest)})
        with open(temporary / MANIFEST, "x", encoding="utf-8") as written:
            written.write(manifest.text())
            written.flush()
            os.fsync(written.fileno())
        _sync(temporary)
        final = version_path(self.path, version)
        if final.exists():
            self._remove(final)
        os.rename(temporary, final)
        _sync(self.path)
        del self._begun[version]

    def keep(self, newest: int, also: Collection[int] = ()) -> list[int]:
        """See VersionStore."""
        if newest < 1:
            raise ValueError(f"keep {newest} versions: at least the newest must stay, or late joiners find none")
        gone = [version for version in self.versions()[:-newest] if version not in also]
        for version in gone:
            self._remove(version_path(self.path, version))
        ours = set(self._begun.values())
        for entry in self.path.iterdir() if self.path.is_dir() else ():
            if HIDDEN.fullmatch(entry.name) and entry not in ours and _age(entry) > LEFTOVER_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)
        return gone

    def _write_delta(self, temporary: Path, manifest: Manifest) -> Delta | None:
        """Write the delta against the newest earlier version.

        None, and no file, when there is no earlier version, when it cannot be read, or when the delta is too large.
        """
        before = max((version for version in self.versions() if version < manifest.version), default=None)
        if before is None:
            return None
        limit, path = int(manifest.bytes * LARGEST_SHARE), temporary / DELTA
        try:
            with self.open(before) as base, open(path, "xb") as written:
                for name, file in sorted(manifest.files.items()):
                    for piece in self._differences(base, name, temporary / name, file.bytes):
                        written.write(piece)
                        if written.tell() > limit:
                            raise DeltaUnusable(f"the delta of version {manifest.version} is larger than {limit} bytes")
                written.flush()
                os.fsync(written.fileno())
                return Delta(base=before, identity=base.manifest.identity, bytes=written.tell())
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

    def versions(self) -> list[int]:
        """See VersionStore."""
        return versions_in(self.path)

    def manifest(self, version: int) -> Manifest:
        """See VersionStore."""
        with self.open(version) as reader:
            return reader.manifest

    def open(self, version: int) -> DirectoryReader:
        """See VersionStore."""
        return DirectoryReader(self.path, version)

    def fetch(self, version: int) -> Fetched:
        """See VersionStore. The directory is the published one."""
        start, stats = time.perf_counter(), CopyStats()
        with self.open(version) as reader:
            reader.verify(stats)
        return Fetched(version, reader.path, stats.shares(time.perf_counter() - start), stats.bytes)

    # --- paths

    def _hidden(self, version: int, what: str) -> Path:
        return self.path / f".v{version:08d}.{what}.{secrets.token_hex(4)}"

    def _remove(self, final: Path) -> None:
        """Rename out of readers' sight, then delete."""
        gone = self._hidden(int(final.name[1:]), "gone")
        os.rename(final, gone)
        shutil.rmtree(gone, ignore_errors=True)  # what stays (a reader's open file on NFS) is removed by a later keep


def _sync(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
