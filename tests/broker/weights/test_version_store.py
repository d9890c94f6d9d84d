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

from broker.errors import WeightsError, WeightsMissing
from broker.settings import RunSettings, WeightsSettings
from broker.weights.cache import WeightsCache
from broker.weights.copying import CopyStats, digest
from broker.weights.delta import DELTA, diff
from broker.weights.directory import DirectoryStore
from broker.weights.factory import location_of, open_fetch, open_store
from broker.weights.manifest import MANIFEST, Delta, File, Manifest, parse
from broker.weights.store import Fetched, VersionReader, VersionStore


class MemoryReader:
    """A version in a dictionary of files."""

    def __init__(self, version: int, files: dict[str, bytes]) -> None:
        self.version, self._files = version, files
        self.manifest = parse(files[MANIFEST], version, f"{self.location}/{MANIFEST}")

    @property
    def location(self) -> str:
        return f"memory://{self.version}"

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
        self.stored: dict[int, dict[str, bytes]] = {}

    def begin(self, version: int) -> Path:
        self._begun = Path(tempfile.mkdtemp())
        return self._begun

    def publish(self, version: int, meta: dict[str, Any] | None = None, *, delta: bool = False) -> None:
        content = {path.name: path.read_bytes() for path in sorted(self._begun.iterdir())}
        files = {
            name: File(bytes=len(data), sha256=digest(io.BytesIO(data), CopyStats())) for name, data in content.items()
        }
        manifest = Manifest(version=version, published_at=time.time(), files=files, meta=meta or {})
        if delta and version - 1 in self.stored:
            base = self.stored[version - 1]
            pieces = [
                b"".join(diff(io.BytesIO(base[name]), io.BytesIO(data), len(data), 2)) for name, data in content.items()
            ]
            content[DELTA] = b"".join(pieces)
            identity = self.manifest(version - 1).identity
            described = Delta(base=version - 1, identity=identity, bytes=len(content[DELTA]))
            manifest = manifest.model_copy(update={"delta": described})
        self.stored[version] = content | {MANIFEST: manifest.text().encode()}

    def keep(self, newest: int, also: Collection[int] = ()) -> list[int]:
        gone = [version for version in self.versions()[:-newest] if version not in also]
        for version in gone:
            del self.stored[version]
        return gone

    def versions(self) -> list[int]:
        return sorted(self.stored)

    def manifest(self, version: int) -> Manifest:
        return self.open(version).manifest

    def open(self, version: int) -> VersionReader:
        if version not in self.stored:
            raise WeightsMissing(f"version {version} is not in memory; take a newer one")
        return MemoryReader(version, self.stored[version])

    def fetch(self, version: int) -> Fetched:
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


def write(store: VersionStore, version: int, tensor: np.ndarray) -> None:
    save_file({"layer": tensor}, store.begin(version) / "model.safetensors")


def publish(store: VersionStore, version: int, tensor: np.ndarray) -> None:
    write(store, version, tensor)
    store.publish(version, {"step": 10 * version}, delta=True)


def loaded(fetched: Fetched) -> np.ndarray:
    return load_file(fetched.directory / "model.safetensors")["layer"]


TENSOR = np.random.default_rng(0).standard_normal(50_000).astype(np.float16)


def test_nothing_is_visible_before_publish_and_everything_after(store: VersionStore, cache: WeightsCache) -> None:
    write(store, 3, TENSOR)
    assert store.versions() == []
    for read in (store.open, store.manifest, cache.fetch):
        with pytest.raises(WeightsMissing, match="version 3 is not in"):
            read(3)
    store.publish(3, {"step": 30})
    assert store.versions() == [3]
    assert store.manifest(3).meta == {"step": 30} and store.manifest(3).version == 3
    assert np.array_equal(loaded(cache.fetch(3)), TENSOR)


def test_an_open_version_gives_each_file_from_its_beginning_and_can_be_sought(store: VersionStore) -> None:
    publish(store, 1, TENSOR)
    with store.open(1) as reader:
        (name,) = reader.manifest.files
        with reader.file(name) as first, reader.file(name) as second:
            data = first.read()
            assert len(data) == reader.manifest.bytes
            second.seek(100)
            assert second.read() == data[100:]


def test_a_reader_with_the_version_before_takes_only_the_delta(store: VersionStore, cache: WeightsCache) -> None:
    publish(store, 1, TENSOR)
    assert cache.fetch(1).bytes == {"copied": store.manifest(1).bytes, "kept": 0, "delta": 0}
    changed = TENSOR.copy()
    changed[::100] *= -1
    publish(store, 2, changed)
    fetched = cache.fetch(2)
    assert fetched.fallback is None and fetched.bytes["copied"] == 0
    assert 0 < fetched.bytes["delta"] < store.manifest(2).bytes / 10
    assert np.array_equal(loaded(fetched), changed)


def test_a_version_that_was_never_pointed_at_is_replaced(store: VersionStore, cache: WeightsCache) -> None:
    publish(store, 1, TENSOR)
    cache.fetch(1)
    publish(store, 1, -TENSOR)
    assert np.array_equal(loaded(cache.fetch(1)), -TENSOR)


def test_old_versions_are_deleted_except_those_that_are_needed(store: VersionStore, cache: WeightsCache) -> None:
    for version in range(5):
        publish(store, version, TENSOR)
    assert store.keep(2, {0}) == [1, 2]
    assert store.versions() == [0, 3, 4]
    with pytest.raises(WeightsMissing):
        cache.fetch(1)


def test_the_factory_opens_the_runs_own_directory_and_the_cache_where_one_is_set(tmp_path: Path) -> None:
    run = RunSettings(name="demo", directory=tmp_path)
    location = location_of(run)
    assert location == str(tmp_path / "demo" / "weights")
    store = open_store(WeightsSettings(), location)
    assert isinstance(store, DirectoryStore) and store.path == Path(location)
    publish(store, 1, TENSOR)
    assert open_fetch(WeightsSettings(), run, location)(1).directory == Path(location) / "v00000001"
    cached = WeightsSettings(cache=tmp_path / "cache")
    assert open_fetch(cached, run, location)(1).directory == tmp_path / "cache" / "demo" / "v00000001"


def test_another_kind_of_store_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValidationError, match="'directory'"):
        WeightsSettings.model_validate({"store": "tape"})
