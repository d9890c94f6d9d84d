"""One published version, opened: its manifest and its files, each checked. Writes nothing.

Everything goes through the directory's descriptor, so that whoever replaces or deletes the version meanwhile cannot mix
two of them: the reader is told WeightsMissing and takes a newer one.
"""

from __future__ import annotations

import os
import re
from io import BufferedReader
from pathlib import Path
from types import TracebackType

from broker.errors import WeightsCorrupt, WeightsMissing
from broker.weights.copying import Tally, digest, each
from broker.weights.delta import DELTA
from broker.weights.manifest import MANIFEST, MANIFEST_BYTES, REMEDY, File, Manifest, parse

_FINAL = re.compile(r"v([0-9]{8,12})")


def place(directory: Path, version: int) -> Path:
    """Where `version` is in a directory of versions."""
    return directory / f"v{version:08d}"


def versions(directory: Path) -> list[int]:
    """Published versions, oldest first."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(int(found[1]) for name in names if (found := _FINAL.fullmatch(name)))


class Published:
    """`version` in a directory of versions, held open until `close`. Raises WeightsMissing, WeightsCorrupt."""

    def __init__(self, directory: Path, version: int) -> None:
        self.version, self.path = version, place(directory, version)
        try:
            self.descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing() from None
        try:
            self.manifest = self._manifest()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self.descriptor)

    def __enter__(self) -> Published:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _manifest(self) -> Manifest:
        with self._open(MANIFEST, "a manifest") as file:
            data = file.read(MANIFEST_BYTES + 1)
        return parse(data, self.version, self.path / MANIFEST)

    def verify(self, tally: Tally) -> None:
        """Check that the directory holds exactly what the manifest says, every byte of it."""

        def check(name: str, mine: Tally) -> None:
            with self.file(name) as file:
                self.compare(name, digest(file, mine))

        each(self.manifest.files, check, tally)
        # A loader may pick up any file it knows the name of; hidden ones (a network file system's own) it does not.
        there = {name for name in os.listdir(self.descriptor) if not name.startswith(".")}
        self.still_there()
        if extra := there - {*self.manifest.files, MANIFEST}:
            raise WeightsCorrupt(f"{self.path}: expected its manifest's files, found also {min(extra)!r}; {REMEDY}")

    def file(self, name: str) -> BufferedReader:
        """One of the manifest's files, open and of the right size."""
        return self._sized(name, self.manifest.files[name].bytes)

    def delta(self) -> BufferedReader:
        """The file that `manifest.delta` speaks of, open and of the right size."""
        assert self.manifest.delta is not None
        return self._sized(DELTA, self.manifest.delta.bytes)

    def compare(self, name: str, found: str) -> None:
        """Raises WeightsCorrupt unless `found` is the SHA-256 that the manifest has for `name`."""
        expected: File = self.manifest.files[name]
        if found != expected.sha256:
            raise WeightsCorrupt(
                f"{self.path / name}: expected sha256 {expected.sha256[:16]}…, found {found[:16]}…; {REMEDY}"
            )

    def still_there(self) -> None:
        """Raises WeightsMissing when the opened directory has been deleted or replaced since."""
        try:
            same = os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        except FileNotFoundError:
            same = False
        if not same:
            raise self._missing()

    def _sized(self, name: str, size: int) -> BufferedReader:
        file = self._open(name, f"{size} bytes")
        found = os.fstat(file.fileno()).st_size
        if found != size:
            file.close()
            raise WeightsCorrupt(f"{self.path / name}: expected {size} bytes, found {found}; {REMEDY}")
        return file

    def _open(self, name: str, expected: str) -> BufferedReader:
        try:
            return open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self.descriptor), "rb")
        except OSError as error:
            self.still_there()
            raise WeightsCorrupt(
                f"{self.path / name}: expected {expected}, found none ({error.strerror}); {REMEDY}"
            ) from None

    def _missing(self) -> WeightsMissing:
        newest = max(versions(self.path.parent), default=None)
        there = "no version is published there yet" if newest is None else f"the newest there is {newest}"
        return WeightsMissing(
            f"version {self.version} is not in {self.path.parent}: {there}; take that one and try again"
        )
