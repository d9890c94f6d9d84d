"""What every VersionStore must keep, read through `weights.cache`; and the factory. Add your store to STORES."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from broker.errors import WeightsCorrupt, WeightsError, WeightsMissing
from broker.queue.state import Published, VersionName
from broker.settings import RunSettings, WeightsSettings
from broker.weights.cache import WeightsCache
from broker.weights.copying import CopyStats, digest
from broker.weights.delta import DELTA, diff
from broker.weights.directory import DirectoryStore
from broker.weights.factory import location_of, open_fetch, open_store
from broker.weights.manifest import MANIFEST, Delta, File, Manifest, parse
from broker.weights.store import Fetched, VersionReader, VersionStore
from tests.broker.builders import v


class MemoryReader:
    """A version in a dictionary of files."""

    def __init__(self, name: VersionName, files: dict[str, bytes]) -> None:
        self.name, self._files = name, files
        self.manifest = parse(files[MANIFEST], name, f"{self.location}/{MANIFEST}")

    @property
    def location(self) -> str:
        return f"memory://{self.name}"

    def file(self, name: str) -> io.BufferedReader:
        return io.BufferedReader(io.BytesIO(self._files[name]))

    def delta(self) -> io.BufferedReader:
        return self.file(DELTA)

    def close(self) -> None:
        pass

    def __enter__(self) -> MemoryReader:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class MemoryStore:
    """Versions as bytes: no directory that anybody could read in place."""

    path: Path | None = None

    def __init__(self) -> None:
        self.stored: dict[VersionName, dict[str, bytes]] = {}

    def begin(self, name: VersionName) -> Path:
        self._begun = Path(tempfile.mkdtemp())
        return self._begun

    def publish(
        self, name: VersionName, meta: dict[str, Any] | None = None, *, base: VersionName | None = None
    ) -> Manifest:
        if name in self.stored:
            return self.manifest(name)
        content = {path.name: path.read_bytes() for path in sorted(self._begun.iterdir())}
        files = {
            file: File(bytes=len(data), sha256=digest(io.BytesIO(data), CopyStats())) for file, data in content.items()
        }
        manifest = Manifest(
            version=name.number, epoch=name.epoch, published_at=time.time(), files=files, meta=meta or {}
        )
        if base in self.stored:
            old = self.stored[base]
            pieces = [
                b"".join(diff(io.BytesIO(old[file]), io.BytesIO(data), len(data), 2)) for file, data in content.items()
            ]
            content[DELTA] = b"".join(pieces)
            identity = self.manifest(base).identity
            described = Delta(base=base.number, base_epoch=base.epoch, identity=identity, bytes=len(content[DELTA]))
            manifest = manifest.model_copy(update={"delta": described})
        self.stored[name] = content | {MANIFEST: manifest.text().encode()}
        return manifest

    def keep(self, wanted: Collection[VersionName], epoch: int) -> list[VersionName]:
        gone = [name for name in self.versions() if name.epoch <= epoch and name not in wanted]
        for name in gone:
            del self.stored[name]
        return gone

    def versions(self) -> list[VersionName]:
        return sorted(self.stored)

    def manifest(self, name: VersionName) -> Manifest:
        return self.open(name).manifest

    def open(self, name: VersionName) -> VersionReader:
        if name not in self.stored:
            raise WeightsMissing(f"version {name} is not in memory; take a newer one")
        return MemoryReader(name, self.stored[name])

    def fetch(self, name: VersionName) -> Fetched:
        raise WeightsError("nothing can be read in place here; set weights.cache")


STORES: dict[str, Callable[[Path], VersionStore]] = {
    "directory": lambda path: DirectoryStore(path / "weights"),
    "memory": lambda path: MemoryStore(),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> VersionStore:
    return STORES[request.param](tmp_path)


@pytest.fixture
def cache(store: VersionStore, tmp_path: Path) -> WeightsCache:
    return WeightsCache(store, tmp_path / "cache")


def write(store: VersionStore, name: VersionName, tensor: np.ndarray) -> None:
    save_file({"layer": tensor}, store.begin(name) / "model.safetensors")


def publish(store: VersionStore, name: VersionName, tensor: np.ndarray) -> Manifest:
    write(store, name, tensor)
    base = max((other for other in store.versions() if other.number < name.number), default=None)
    return store.publish(name, {"step": 10 * name.number}, base=base)


def loaded(fetched: Fetched) -> np.ndarray:
    return load_file(fetched.directory / "model.safetensors")["layer"]


TENSOR = np.random.default_rng(0).standard_normal(50_000).astype(np.float16)


def test_nothing_is_visible_before_publish_and_everything_after(store: VersionStore, cache: WeightsCache) -> None:
    write(store, v(3), TENSOR)
    assert store.versions() == []
    for read in (store.open, store.manifest, cache.fetch):
        with pytest.raises(WeightsMissing, match="version v00000003-e0001 is not in"):
            read(v(3))
    store.publish(v(3), {"step": 30})
    assert store.versions() == [v(3)]
    assert store.manifest(v(3)).meta == {"step": 30} and store.manifest(v(3)).name == v(3)
    assert np.array_equal(loaded(cache.fetch(v(3))), TENSOR)


def test_an_open_version_gives_each_file_from_its_beginning_and_can_be_sought(store: VersionStore) -> None:
    publish(store, v(1), TENSOR)
    with store.open(v(1)) as reader:
        (name,) = reader.manifest.files
        with reader.file(name) as first, reader.file(name) as second:
            data = first.read()
            assert len(data) == reader.manifest.bytes
            second.seek(100)
            assert second.read() == data[100:]


def test_a_reader_with_the_version_before_takes_only_the_delta(store: VersionStore, cache: WeightsCache) -> None:
    publish(store, v(1), TENSOR)
    assert cache.fetch(v(1)).bytes == {"copied": store.manifest(v(1)).bytes, "kept": 0, "delta": 0}
    changed = TENSOR.copy()
    changed[::100] *= -1
    publish(store, v(2), changed)
    fetched = cache.fetch(v(2))
    assert fetched.fallback is None and fetched.bytes["copied"] == 0
    assert 0 < fetched.bytes["delta"] < store.manifest(v(2)).bytes / 10
    assert np.array_equal(loaded(fetched), changed)


def test_a_number_of_two_epochs_is_two_versions_and_neither_changes(store: VersionStore, cache: WeightsCache) -> None:
    first = publish(store, v(1, 2), TENSOR)
    second = publish(store, v(1, 3), -TENSOR)
    assert publish(store, v(1, 2), -TENSOR).identity == first.identity != second.identity
    assert np.array_equal(loaded(cache.fetch(v(1, 2))), TENSOR)
    assert np.array_equal(loaded(cache.fetch(v(1, 3))), -TENSOR)


def test_old_versions_are_deleted_except_those_that_are_needed(store: VersionStore, cache: WeightsCache) -> None:
    for version in range(5):
        publish(store, v(version), TENSOR)
    publish(store, v(1, 2), TENSOR)
    assert store.keep({v(0), v(3), v(4)}, 1) == [v(1), v(2)]
    assert store.versions() == [v(0), v(1, 2), v(3), v(4)]
    with pytest.raises(WeightsMissing):
        cache.fetch(v(1))


def test_the_factory_opens_the_runs_own_directory_and_the_cache_where_one_is_set(tmp_path: Path) -> None:
    run = RunSettings(name="demo", directory=tmp_path)
    location = location_of(run)
    assert location == str(tmp_path / "demo" / "weights")
    store = open_store(WeightsSettings(), location)
    assert isinstance(store, DirectoryStore) and store.path == Path(location)
    identity = publish(store, v(1), TENSOR).identity
    named: dict[int, Published] = {1: Published(v(1), 10, identity), 2: Published(v(1), 10, "0" * 64)}
    for settings, where in (
        (WeightsSettings(), Path(location)),
        (WeightsSettings(cache=tmp_path / "cache"), tmp_path / "cache" / "demo"),
    ):
        fetch = open_fetch(settings, run, location, named.get)
        assert fetch(1).directory == where / "v00000001-e0001"
        with pytest.raises(WeightsCorrupt, match="expected the published identity 0000"):
            fetch(2)
        with pytest.raises(WeightsMissing, match="version 3 has not been published"):
            fetch(3)


def test_another_kind_of_store_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValidationError, match="'directory'"):
        WeightsSettings.model_validate({"store": "tape"})
