"""What readers need of a VersionStore, shown by one without a file system behind `weights.cache`; and the factory."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file

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


def publish(store: VersionStore, version: int, tensor: np.ndarray) -> None:
    save_file({"layer": tensor}, store.begin(version) / "model.safetensors")
    store.publish(version, {"step": version}, delta=True)


def test_a_store_without_a_file_system_is_read_through_the_cache_copied_and_rebuilt_from_deltas(tmp_path: Path) -> None:
    store = MemoryStore()
    cache = WeightsCache(store, tmp_path / "cache")
    tensor = np.random.default_rng(0).standard_normal(50_000).astype(np.float16)
    publish(store, 1, tensor)
    copied = cache.fetch(1)
    assert copied.bytes == {"copied": store.manifest(1).bytes, "kept": 0, "delta": 0}
    tensor[::100] *= -1
    publish(store, 2, tensor)
    rebuilt = cache.fetch(2)
    assert rebuilt.fallback is None and rebuilt.bytes["copied"] == 0
    assert 0 < rebuilt.bytes["delta"] < store.manifest(2).bytes / 10
    assert (rebuilt.directory / "model.safetensors").read_bytes() == store.stored[2]["model.safetensors"]
    assert store.keep(1) == [1]
    with pytest.raises(WeightsMissing, match="not in memory"):
        cache.fetch(1)


def test_the_factory_opens_the_runs_own_directory_and_the_cache_where_one_is_set(tmp_path: Path) -> None:
    run = RunSettings(name="demo", directory=tmp_path)
    location = location_of(run)
    assert location == str(tmp_path / "demo" / "weights")
    store = open_store(WeightsSettings(), location)
    assert isinstance(store, DirectoryStore) and store.path == Path(location)
    publish(store, 1, np.ones(10, np.float16))
    assert open_fetch(WeightsSettings(), run, location)(1).directory == Path(location) / "v00000001"
    cached = WeightsSettings(cache=tmp_path / "cache")
    assert open_fetch(cached, run, location)(1).directory == tmp_path / "cache" / "demo" / "v00000001"


def test_another_kind_of_store_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValidationError, match="'directory'"):
        WeightsSettings.model_validate({"store": "tape"})
