"""Choice of the version store from the settings: the only place that knows the implementations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import assert_never

from broker.errors import WeightsCorrupt, WeightsMissing
from broker.queue.state import Published
from broker.settings import RunSettings, WeightsSettings
from broker.weights.cache import WeightsCache
from broker.weights.directory import DirectoryStore
from broker.weights.manifest import REMEDY
from broker.weights.store import Fetched, VersionStore


def location_of(run: RunSettings) -> str:
    """Where the versions of `run` are kept; the learner tells it to all readers (`RunSpec.weights`)."""
    return str((run.path / "weights").absolute())


def open_store(settings: WeightsSettings, location: str) -> VersionStore:
    """The store of kind `weights.store` at `location`."""
    match settings.store:
        case "directory":
            return DirectoryStore(Path(location))
        case _:
            assert_never(settings.store)


def open_fetch(
    settings: WeightsSettings, run: RunSettings, location: str, published: Callable[[int], Published | None]
) -> Callable[[int], Fetched]:
    """`VersionStore.fetch` by version number, of the store at `location`, or of this machine's copies where
    `weights.cache` is set.

    `published` says which files a number means (`RunConnection.published`): their epoch and their hash. The result
    raises WeightsMissing also for a number that was never published, WeightsCorrupt also for files with another hash.
    Raises WeightsError for a cache inside the store's own directory.
    """
    store = open_store(settings, location)
    fetch = store.fetch if settings.cache is None else WeightsCache(store, settings.cache / run.name).fetch

    def fetch_published(version: int) -> Fetched:
        named = published(version)
        if named is None:
            raise WeightsMissing(f"version {version} has not been published; take a newer one and try again")
        found = fetch(named.name)
        if found.identity != named.identity:
            raise WeightsCorrupt(
                f"{found.directory}: expected the published identity {named.identity[:16]}…, found "
                f"{found.identity[:16]}…; {REMEDY}"
            )
        return found

    return fetch_published
