"""The interface of a version store: where the learner keeps published weights and actors read them.

Every implementation keeps these promises:

- readers see a version whole or not at all, and `publish` returns only when it is durable;
- every file is checked against the manifest's SHA-256 before anybody loads it;
- a version has the learner's epoch in its name, so that it has one writer (that learner's rank 0), and is never written
  again once it is there; any number of readers, which may join late;
- a reader of a version that is deleted gets WeightsMissing, never a mixture.

A store holds what was written, not what counts: the learner moves the broker's version pointer, which names number,
epoch and hash, only after `publish`. `factory.open_store` chooses the implementation.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from broker.queue.state import VersionName
from broker.weights.copying import Part, Source
from broker.weights.delta import Fallback
from broker.weights.manifest import Manifest


@dataclass(frozen=True)
class Fetched:
    """A verified version in a directory of this machine, and the time and bytes that fetching it took."""

    version: int
    identity: str
    """`Manifest.identity` of its files."""
    directory: Path
    seconds: dict[Part, float]
    """Wall time: `fetch` (reading, copying or rebuilding), `verify` (hashing)."""
    bytes: dict[Source, int]
    """Written to a local copy, by origin; all 0 where files are read in place."""
    fallback: Fallback | None = None
    """Why the version's delta could not be used; None when it was used, or not needed."""


class VersionReader(Protocol):
    """One published version, open until `close`. Its files are of the right size and not otherwise checked."""

    name: VersionName
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

    def begin(self, name: VersionName) -> Path:
        """An empty directory of this machine into which to write the files of version `name`, flat, before
        `publish`."""

    def publish(
        self, name: VersionName, meta: dict[str, Any] | None = None, *, base: VersionName | None = None
    ) -> Manifest:
        """Make the files written since `begin(name)` visible as `name`, durably, with `meta` in the manifest.

        `base`: an earlier version; what changed since it is stored too, if it is small enough. A version of this name
        that is there already stays as it is. Raises WeightsError when nothing was begun or written, or when anything
        other than plain files was.
        """

    def keep(self, wanted: Collection[VersionName], epoch: int) -> list[VersionName]:
        """Delete all versions but `wanted` that learners up to `epoch` wrote, and what they left half-written; returns
        what was deleted. Those of later epochs are not this learner's to judge."""

    # --- readers

    def versions(self) -> list[VersionName]:
        """What is there, in order."""

    def manifest(self, name: VersionName) -> Manifest:
        """The manifest of `name`; its files are not checked. Raises as `fetch`."""

    def open(self, name: VersionName) -> VersionReader:
        """The files of `name`, not checked yet. Raises as `fetch`."""

    def fetch(self, name: VersionName) -> Fetched:
        """The files of `name` in a directory of this machine, each checked against the manifest.

        Raises WeightsMissing when the version is not there (any more): take a newer one; WeightsCorrupt when a file is
        not what was published.
        """
