"""The interface of a version store: where the learner keeps published weights and actors read them.

Every implementation keeps these promises:

- readers see a version whole or not at all, and `publish` returns only when it is durable;
- every file is checked against the manifest's SHA-256 before anybody loads it;
- one writer (the learner's rank 0) and any number of readers, which may join late;
- a reader of a version that is deleted or replaced gets WeightsMissing, never a mixture.

The learner moves the broker's version pointer only after `publish`. `factory.open_store` chooses the implementation.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from broker.weights.copying import Part, Source
from broker.weights.delta import Fallback
from broker.weights.manifest import Manifest


@dataclass(frozen=True)
class Fetched:
    """A verified version in a directory of this machine, and the time and bytes that fetching it took."""

    version: int
    directory: Path
    seconds: dict[Part, float]
    """Wall time: `fetch` (reading, copying or rebuilding), `verify` (hashing)."""
    bytes: dict[Source, int]
    """Written to a local copy, by origin; all 0 where files are read in place."""
    fallback: Fallback | None = None
    """Why the version's delta could not be used; None when it was used, or not needed."""


class VersionReader(Protocol):
    """One published version, open until `close`. Its files are of the right size and not otherwise checked."""

    version: int
    manifest: Manifest

    @property
    def location(self) -> str:
        """Path or address of the version, for messages."""

    def file(self, name: str) -> BufferedReader:
        """The manifest's file `name`, at its beginning; seekable. Raises WeightsMissing, WeightsCorrupt."""

    def delta(self) -> BufferedReader:
        """The file that `manifest.delta` describes, at its beginning. Raises WeightsMissing, WeightsCorrupt."""

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class VersionStore(Protocol):
    """The published versions of one run."""

    @property
    def path(self) -> Path | None:
        """Directory of this machine that the store occupies; None for a store that is not a file system."""

    # --- the writer

    def begin(self, version: int) -> Path:
        """An empty directory of this machine into which to write the files of `version`, flat, before `publish`."""

    def publish(self, version: int, meta: dict[str, Any] | None = None, *, delta: bool = False) -> None:
        """Make the files written since `begin(version)` visible as `version`, durably, with `meta` in the manifest.

        With `delta`, what changed since the newest earlier version is stored too, if it is small enough. A version of
        this number that is there already (its writer died before the version pointer moved) is replaced. Raises
        WeightsError when nothing was begun or written, or when anything other than plain files was.
        """

    def keep(self, newest: int, also: Collection[int] = ()) -> list[int]:
        """Delete all but the `newest` (a count, at least 1) highest versions and those in `also`; returns what was
        deleted. Also removes what writers that died have left behind."""

    # --- readers

    def versions(self) -> list[int]:
        """Published versions, oldest first."""

    def manifest(self, version: int) -> Manifest:
        """The manifest of `version`; its files are not checked. Raises as `fetch`."""

    def open(self, version: int) -> VersionReader:
        """The files of `version`, not checked yet. Raises as `fetch`."""

    def fetch(self, version: int) -> Fetched:
        """The files of `version` in a directory of this machine, each checked against the manifest.

        Raises WeightsMissing when the version is not there (any more): take a newer one; WeightsCorrupt when a file is
        not what was published.
        """
