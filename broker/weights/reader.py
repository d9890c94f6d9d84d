"""One published version in a directory of versions, opened for reading; and the names that versions have there.

Files are opened through the directory's descriptor, so a version that is deleted meanwhile cannot mix two
sets of weights: the reader gets WeightsMissing and takes a newer one.
"""

from __future__ import annotations

import os
import re
from io import BufferedReader
from pathlib import Path
from types import TracebackType

from broker.errors import WeightsCorrupt, WeightsMissing
from broker.plain_files import open_plain
from broker.queue.state import VersionName
from broker.weights.copying import CopyStats, digest, for_each
from broker.weights.delta import DELTA
from broker.weights.manifest import MANIFEST, MANIFEST_BYTES, REMEDY, Manifest, parse

HIDDEN = re.compile(r"\.v([0-9]{8,12})-e([0-9]{4,12})\.[a-z]+\.[0-9a-f]{8}")
"""A version that is being written or removed."""
_VISIBLE = re.compile(r"v([0-9]{8,12})-e([0-9]{4,12})")


def version_path(directory: Path, name: VersionName) -> Path:
    """Where version `name` is in a directory of versions."""
    return directory / str(name)


def versions_in(directory: Path) -> list[VersionName]:
    """The versions in `directory`, in order."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    found = (_VISIBLE.fullmatch(name) for name in names)
    return sorted(VersionName(int(match[1]), int(match[2])) for match in found if match)


def leftovers_in(directory: Path, epoch: int) -> list[Path]:
    """Versions that learners up to `epoch` began to write or to remove in `directory`."""
    try:
        entries = list(directory.iterdir())
    except FileNotFoundError:
        return []
    return [entry for entry in entries if (found := HIDDEN.fullmatch(entry.name)) and int(found[2]) <= epoch]


class DirectoryReader:
    """Version `name` in a directory of versions, held open until `close`; a VersionReader.

    Raises WeightsMissing when the version is not there, WeightsCorrupt when its manifest cannot be read.
    """

    def __init__(self, directory: Path, name: VersionName) -> None:
        self.name, self.path = name, version_path(directory, name)
        try:
            self.descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing() from None
        try:
            with self._open(MANIFEST, "a manifest") as file:
                data = file.read(MANIFEST_BYTES + 1)
            self.manifest: Manifest = parse(data, name, str(self.path / MANIFEST))
        except BaseException:
            self.close()
            raise

    @property
    def location(self) -> str:
        return str(self.path)

    def close(self) -> None:
        os.close(self.descriptor)

    def __enter__(self) -> DirectoryReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def verify(self, stats: CopyStats) -> None:
        """Check that the directory holds exactly the manifest's files, every byte of them.

        Raises WeightsCorrupt, or WeightsMissing when the version was deleted or replaced meanwhile.
        """

        def check(name: str, own: CopyStats) -> None:
            with self.file(name) as file:
                self.manifest.check(name, digest(file, own), self.location)

        for_each(self.manifest.files, check, stats)
        # A loader may read any file whose name it knows. Hidden files, such as a network file system's own, it skips.
        there = {name for name in os.listdir(self.descriptor) if not name.startswith(".")}
        self.still_there()
        if extra := there - {*self.manifest.files, MANIFEST}:
            raise WeightsCorrupt(
                f"{self.path}: expected only the files of its manifest, found also {min(extra)!r}; {REMEDY}"
            )

    def file(self, name: str) -> BufferedReader:
        """The manifest's file `name`, open and of the right size."""
        return self._sized(name, self.manifest.files[name].bytes)

    def delta(self) -> BufferedReader:
        """The file that `manifest.delta` describes, open and of the right size."""
        assert self.manifest.delta is not None
        return self._sized(DELTA, self.manifest.delta.bytes)

    def still_there(self) -> None:
        """Raise WeightsMissing when the opened directory has been deleted or replaced since."""
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
            return open_plain(name, directory=self.descriptor, links=False)
        except OSError as error:
            self.still_there()
            raise WeightsCorrupt(
                f"{self.path / name}: expected {expected}, found none ({error.strerror}); {REMEDY}"
            ) from None

    def _missing(self) -> WeightsMissing:
        newest = max(versions_in(self.path.parent), default=None)
        there = "no version is there yet" if newest is None else f"the newest there is {newest}"
        return WeightsMissing(f"version {self.name} is not in {self.path.parent}: {there}; take that one and try again")
