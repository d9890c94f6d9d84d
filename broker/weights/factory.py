"""Choice of the version store from the settings: the only place that knows the implementations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import assert_never

from broker.settings import RunSettings, WeightsSettings
from broker.weights.cache import WeightsCache
from broker.weights.directory import DirectoryStore
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


def open_fetch(settings: WeightsSettings, run: RunSettings, location: str) -> Callable[[int], Fetched]:
    """`VersionStore.fetch` of the store at `location`, or that of this machine's copies where `weights.cache` is set.

    Raises WeightsError for a cache inside the store's own directory.
    """
    store = open_store(settings, location)
    return store.fetch if settings.cache is None else WeightsCache(store, settings.cache / run.name).fetch
