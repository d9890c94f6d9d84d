"""Versions of the policy's weights as files on a directory that all services see. No tensors here: only files.

    <directory>/v00000007/model.safetensors, config.json, …, manifest.json [, .delta]

The writer fills a hidden directory (`begin`), then `publish` hashes and syncs every file, writes the manifest last and
renames the directory into place: a reader sees a whole version or none. Only after that does the learner move the
broker's version pointer. Deleting renames away first, so a reader in the middle gets WeightsMissing, never half a
model, and takes a newer version. One writer at a time (the learner's rank 0); any number of readers, which may join
late, read in place (`fetch`) or keep copies of their own (cache.py).
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.errors import WeightsError
from broker.weights.copying import Part, Source, Tally, digest, each
from broker.weights.delta import DELTA, DeltaUnusable, Fallback, diff, word_size
from broker.weights.manifest import MANIFEST, PLAIN, Delta, File, Manifest
from broker.weights.reader import Published, place, versions

LEFTOVER_SECONDS = 900.0
"""A hidden directory untouched for this long belongs to a writer that died."""
DELTA_SHARE = 0.5
"""A delta larger than this share of the full files is not worth the reader's work of applying it."""
HIDDEN = re.compile(r"\.v([0-9]{8,12})\.[a-z]+\.[0-9a-f]{8}")


@dataclass(frozen=True)
class Fetched:
    """A verified version, and what having it here took."""

    version: int
    directory: Path
    seconds: dict[Part, float]
    """Wall time: `fetch` (reading, copying or rebuilding), `verify` (hashing)."""
    bytes: dict[Source, int]
    """Taken to a local copy, by where they came from; all 0 where files are read in place."""
    fallback: Fallback | None = None
    """Why the version's delta could not be used; None when it was, or was not needed."""


class WeightsDirectory:
    """The versions under one directory (usually <run>/weights)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: dict[int, Path] = {}

    # --- the writer

    def begin(self, version: int) -> Path:
        """An empty hidden directory to write the files of `version` into, flat, before `publish`."""
        temporary = self._hidden(version, "partial")
        temporary.mkdir(parents=True)
        abandoned = self._open.pop(version, None)
        if abandoned is not None:
            shutil.rmtree(abandoned, ignore_errors=True)
        self._open[version] = temporary
        return temporary

    def publish(self, version: int, meta: dict[str, Any] | None = None, *, delta: bool = False) -> Path:
        """Make what was written since `begin(version)` visible as `version`, durably; returns its directory.

        With `delta`, what changed since the newest earlier version goes beside the files, if it is small enough.

        A version of this number that is there already (its writer died before the pointer moved) is replaced.
        Raises WeightsError when nothing was begun or written, or when something else than plain files was.
        """
        temporary = self._open.get(version)
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

        def seal(name: str, tally: Tally) -> None:
            with open(temporary / name, "rb", buffering=0) as file:
                found = digest(file, tally)
                os.fsync(file.fileno())
                files[name] = File(bytes=os.fstat(file.fileno()).st_size, sha256=found)

        each(names, seal, Tally())
        files = {name: files[name] for name in names}
        manifest = Manifest(version=version, published_at=time.time(), files=files, meta=meta or {})
        if delta:
            manifest = manifest.model_copy(update={"delta": self._write_delta(temporary, manifest)})
        with open(temporary / MANIFEST, "x", encoding="utf-8") as written:
            written.write(manifest.text())
            written.flush()
            os.fsync(written.fileno())
        _sync(temporary)
        final = place(self.path, version)
        if final.exists():
            self._remove(final)
        os.rename(temporary, final)
        _sync(self.path)
        del self._open[version]
        return final

    def keep(self, newest: int, also: Collection[int] = ()) -> list[int]:
        """Delete all but the `newest` (a count, ≥ 1) highest versions and those in `also`; returns what was deleted.

        Also clears what writers that died have left behind.
        """
        if newest < 1:
            raise ValueError(f"keep {newest} versions: at least the newest must stay, or late joiners find none")
        gone = [version for version in self.versions()[:-newest] if version not in also]
        for version in gone:
            self._remove(place(self.path, version))
        ours = set(self._open.values())
        for entry in self.path.iterdir() if self.path.is_dir() else ():
            if HIDDEN.fullmatch(entry.name) and entry not in ours and _age(entry) > LEFTOVER_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)
        return gone

    def _write_delta(self, temporary: Path, manifest: Manifest) -> Delta | None:
        """Write the delta against the newest earlier version; None, and no file, where there is none, or none that can
        be read, or where the delta is too large."""
        before = max((version for version in self.versions() if version < manifest.version), default=None)
        if before is None:
            return None
        limit, path = int(manifest.bytes * DELTA_SHARE), temporary / DELTA
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
        except WeightsError:  # the full files are there: who reads a damaged base says so
            path.unlink(missing_ok=True)
            return None

    def _differences(self, base: Published, name: str, path: Path, size: int) -> Iterator[bytes]:
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
        """Published versions, oldest first."""
        return versions(self.path)

    def newest(self) -> int | None:
        """The highest published version; None when there is none yet."""
        return max(self.versions(), default=None)

    def open(self, version: int) -> Published:
        """The version's files, none of them checked yet. Raises as `fetch`."""
        return Published(self.path, version)

    def fetch(self, version: int) -> Path:
        """The directory of `version`, every file checked against the manifest (size, then SHA-256).

        Raises WeightsMissing when it is not there (any more): take a newer version; WeightsCorrupt when a file is not
        what was published.
        """
        return self.bring(version).directory

    def bring(self, version: int) -> Fetched:
        """As `fetch`, with what it took."""
        start, tally = time.perf_counter(), Tally()
        with self.open(version) as published:
            published.verify(tally)
        return Fetched(version, published.path, tally.shares(time.perf_counter() - start), tally.bytes)

    def manifest(self, version: int) -> Manifest:
        """The manifest of `version`, its files not checked. Raises as `fetch`."""
        with self.open(version) as published:
            return published.manifest

    # --- paths

    def _hidden(self, version: int, what: str) -> Path:
        return self.path / f".v{version:08d}.{what}.{secrets.token_hex(4)}"

    def _remove(self, final: Path) -> None:
        """Out of readers' sight at once, then off the disk."""
        gone = self._hidden(int(final.name[1:]), "gone")
        os.rename(final, gone)
        shutil.rmtree(gone, ignore_errors=True)  # what stays (a reader's open file on NFS) is cleared by a later keep


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
