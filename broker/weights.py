"""Versions of the policy's weights as files on a directory that all services see. No tensors here: only files.

    <directory>/v00000007/model.safetensors, config.json, …, manifest.json

The writer fills a hidden directory (`begin`), then `publish` hashes and syncs every file, writes the manifest last and
renames the directory into place: a reader sees a whole version or none. Only after that does the learner move the
broker's version pointer. Deleting renames away first, so a reader in the middle gets WeightsMissing, never half a
model, and takes a newer version. One writer at a time (the learner's rank 0); any number of readers, which may join
late.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker.errors import WeightsCorrupt, WeightsError, WeightsMissing

MANIFEST = "manifest.json"
MANIFEST_BYTES = 4 << 20
LEFTOVER_SECONDS = 900.0
"""A hidden directory untouched for this long belongs to a writer that died."""
_FINAL = re.compile(r"v([0-9]{8,12})")
_HIDDEN = re.compile(r"\.v([0-9]{8,12})\.[a-z]+\.[0-9a-f]{8}")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")

Name = Annotated[str, Field(pattern=rf"^{_NAME.pattern}$")]
"""A plain file name: no separator, not hidden, so that a manifest cannot name a file outside its directory."""


class File(BaseModel):
    """One file as it was when it was published."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """What a published version consists of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Annotated[int, Field(ge=1, le=1)] = 1
    version: Annotated[int, Field(ge=0)]
    published_at: float
    """Unix seconds."""
    files: Annotated[dict[Name, File], Field(min_length=1)]
    meta: dict[str, Any] = {}
    """The writer's own: step, dtype …"""


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

    def publish(self, version: int, meta: dict[str, Any] | None = None) -> Path:
        """Make what was written since `begin(version)` visible as `version`, durably; returns its directory.

        A version of this number that is there already (its writer died before the pointer moved) is replaced.
        Raises WeightsError when nothing was begun or written, or when something else than plain files was.
        """
        temporary = self._open.get(version)
        if temporary is None:
            raise WeightsError(
                f"version {version} was not begun; call begin({version}) and write the files there first"
            )
        files = {}
        for entry in sorted(temporary.iterdir()):
            if not stat.S_ISREG(entry.lstat().st_mode) or entry.name == MANIFEST or not _NAME.fullmatch(entry.name):
                raise WeightsError(
                    f"{entry} is not a plain visible file of its own name; a version holds only such, flat"
                )
            with open(entry, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
                files[entry.name] = File(bytes=os.fstat(file.fileno()).st_size, sha256=digest)
        if not files:
            raise WeightsError(f"{temporary} is empty; write the files of version {version} there before publish")
        manifest = Manifest(version=version, published_at=time.time(), files=files, meta=meta or {})
        with open(temporary / MANIFEST, "x", encoding="utf-8") as written:
            written.write(manifest.model_dump_json(indent=1))
            written.flush()
            os.fsync(written.fileno())
        _sync(temporary)
        final = self._final(version)
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
            self._remove(self._final(version))
        ours = set(self._open.values())
        for entry in self.path.iterdir() if self.path.is_dir() else ():
            if _HIDDEN.fullmatch(entry.name) and entry not in ours and _age(entry) > LEFTOVER_SECONDS:
                shutil.rmtree(entry, ignore_errors=True)
        return gone

    # --- readers

    def versions(self) -> list[int]:
        """Published versions, oldest first."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return []
        return sorted(int(found[1]) for name in names if (found := _FINAL.fullmatch(name)))

    def newest(self) -> int | None:
        """The highest published version; None when there is none yet."""
        return max(self.versions(), default=None)

    def fetch(self, version: int) -> Path:
        """The directory of `version`, every file checked against the manifest (size, then SHA-256).

        Raises WeightsMissing when it is not there (any more): take a newer version; WeightsCorrupt when a file is not
        what was published.
        """
        with self._opened(version) as directory:
            final = self._final(version)
            manifest = self._manifest(version, directory)
            for name, expected in manifest.files.items():
                with self._file(version, directory, name, f"{expected.bytes} bytes") as file:
                    size = os.fstat(file.fileno()).st_size
                    if size != expected.bytes:
                        raise WeightsCorrupt(
                            f"{final / name}: expected {expected.bytes} bytes, found {size}; {_REMEDY}"
                        )
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                if digest != expected.sha256:
                    raise WeightsCorrupt(
                        f"{final / name}: expected sha256 {expected.sha256[:16]}…, found {digest[:16]}…; {_REMEDY}"
                    )
            # A loader may pick up any file it knows the name of; hidden ones (a network file system's own) it does not.
            there = {name for name in os.listdir(directory) if not name.startswith(".")}
            self._still_there(version, directory)
            if extra := there - {*manifest.files, MANIFEST}:
                raise WeightsCorrupt(f"{final}: expected its manifest's files, found also {min(extra)!r}; {_REMEDY}")
        return final

    def manifest(self, version: int) -> Manifest:
        """The manifest of `version`, its files not checked. Raises as `fetch`."""
        with self._opened(version) as directory:
            return self._manifest(version, directory)

    def _manifest(self, version: int, directory: int) -> Manifest:
        path = self._final(version) / MANIFEST
        with self._file(version, directory, MANIFEST, "a manifest") as file:
            data = file.read(MANIFEST_BYTES + 1)
        if len(data) > MANIFEST_BYTES:
            raise WeightsCorrupt(f"{path}: expected at most {MANIFEST_BYTES} bytes, found more; {_REMEDY}")
        try:
            manifest = Manifest.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part)[:80] for part in first["loc"]) or "the whole"
            raise WeightsCorrupt(
                f"{path}: expected a manifest, found {where}: {first['msg'][:160]}; {_REMEDY}"
            ) from None
        if manifest.version != version:
            raise WeightsCorrupt(f"{path}: expected version {version}, found {manifest.version}; {_REMEDY}")
        return manifest

    @contextmanager
    def _opened(self, version: int) -> Iterator[int]:
        """The version's directory as a descriptor: whoever replaces the version meanwhile cannot mix two of them."""
        try:
            directory = os.open(self._final(version), os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(version) from None
        try:
            yield directory
        finally:
            os.close(directory)

    def _file(self, version: int, directory: int, name: str, expected: str) -> BufferedReader:
        try:
            return open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory), "rb")
        except OSError as error:
            self._still_there(version, directory)
            path = self._final(version) / name
            raise WeightsCorrupt(f"{path}: expected {expected}, found none ({error.strerror}); {_REMEDY}") from None

    def _still_there(self, version: int, directory: int) -> None:
        """Raises WeightsMissing when the opened directory has been deleted or replaced since."""
        try:
            same = os.path.samestat(os.stat(self._final(version)), os.fstat(directory))
        except FileNotFoundError:
            same = False
        if not same:
            raise self._missing(version)

    def _missing(self, version: int) -> WeightsMissing:
        newest = self.newest()
        there = "no version is published there yet" if newest is None else f"the newest there is {newest}"
        return WeightsMissing(f"version {version} is not in {self.path}: {there}; take that one and try again")

    # --- paths

    def _final(self, version: int) -> Path:
        return self.path / f"v{version:08d}"

    def _hidden(self, version: int, what: str) -> Path:
        return self.path / f".v{version:08d}.{what}.{secrets.token_hex(4)}"

    def _remove(self, final: Path) -> None:
        """Out of readers' sight at once, then off the disk."""
        gone = self._hidden(int(final.name[1:]), "gone")
        os.rename(final, gone)
        shutil.rmtree(gone, ignore_errors=True)  # what stays (a reader's open file on NFS) is cleared by a later keep


_REMEDY = "have the learner publish again, or look for a full disk or another writer"


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
