"""The cache of versions on the reader's machine: verified, continued after a kill, shared, from deltas, removed."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from broker.errors import WeightsCorrupt, WeightsError, WeightsMissing
from broker.queue.state import VersionName
from broker.weights.cache import WeightsCache
from broker.weights.delta import DELTA
from broker.weights.directory import DirectoryStore
from broker.weights.manifest import MANIFEST, SCHEMA
from broker.weights.reader import version_path
from tests.broker.builders import v

ROOT = Path(__file__).parents[3]
READER = """
import json, sys
from pathlib import Path
import broker.weights.copying
from broker.queue.state import VersionName
from broker.weights.cache import WeightsCache
from broker.weights.directory import DirectoryStore

weights, cache, version, chunk, hold = sys.argv[1:]
broker.weights.copying.CHUNK = int(chunk)
print("ready", flush=True)
sys.stdin.readline()
found = WeightsCache(DirectoryStore(Path(weights)), Path(cache)).fetch(VersionName(int(version), 1))
print(json.dumps({"directory": str(found.directory), **found.bytes}), flush=True)
if hold == "hold":
    sys.stdin.read()
"""


class Reader:
    """A process that fetches one version; small chunks make it slow."""

    def __init__(self, weights: Path, cache: Path, version: int, *, chunk: int = 1 << 20, hold: bool = False) -> None:
        command = [sys.executable, "-c", READER, weights, cache, str(version), str(chunk), "hold" if hold else ""]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )  # fmt: skip
        assert self.process.stdin and self.process.stdout
        assert self.process.stdout.readline() == "ready\n"
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def result(self) -> dict[str, int]:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def tensors(seed: int = 0, count: int = 20_000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"layer{i}": rng.standard_normal(count).astype(np.float16) for i in range(3)}


def nudged(before: dict[str, np.ndarray], share: float, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: np.where(rng.random(tensor.shape) < share, -tensor, tensor).astype(tensor.dtype)
        for name, tensor in before.items()
    }


def before(weights: DirectoryStore, version: int) -> VersionName | None:
    """The newest version below `version`, as the learner names it for the delta."""
    return max((name for name in weights.versions() if name.number < version), default=None)


def publish(weights: DirectoryStore, version: int, state: dict[str, np.ndarray], *, delta: bool = True) -> Path:
    """Two shards, an index and a configuration."""
    folder = weights.begin(v(version))
    names = sorted(state)
    save_file({name: state[name] for name in names[:2]}, folder / "model-00001-of-00002.safetensors")
    save_file({name: state[name] for name in names[2:]}, folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(names))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    weights.publish(v(version), {"step": version}, base=before(weights, version) if delta else None)
    return version_path(weights.path, v(version))


def publish_bytes(weights: DirectoryStore, version: int, size: int, files: int = 3) -> Path:
    folder = weights.begin(v(version))
    for number in range(files):
        (folder / f"part{number}.safetensors").write_bytes(os.urandom(size))
    weights.publish(v(version))
    return version_path(weights.path, v(version))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".safetensors", ".json")}


@pytest.fixture
def weights(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "weights")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "host" / "cache"


@pytest.fixture
def cache(weights: DirectoryStore, path: Path) -> WeightsCache:
    return WeightsCache(weights, path)


def size(weights: DirectoryStore, version: int) -> int:
    return weights.manifest(v(version)).bytes


# --- copies


def test_a_copy_is_the_published_version_and_is_read_only_once(weights, cache, path):
    there = publish(weights, 1, tensors())
    first = cache.fetch(v(1))
    assert first.directory == path / "v00000001-e0001" and contents(first.directory) == contents(there)
    assert first.bytes == {"copied": size(weights, 1), "kept": 0, "delta": 0}
    again = cache.fetch(v(1))
    assert again.directory == first.directory and again.bytes["copied"] == 0
    assert first.seconds["fetch"] > 0 and first.seconds["verify"] > 0
    assert {entry.name for entry in path.iterdir()} == {"v00000001-e0001", ".lock"}


def test_what_is_missing_or_corrupt_at_the_source_never_becomes_a_copy(weights, cache, path):
    there = publish(weights, 1, tensors())
    with pytest.raises(WeightsMissing, match="newest there is v00000001-e0001"):
        cache.fetch(v(2))
    shard = there / "model-00002-of-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(
        WeightsCorrupt, match=r"weights/v00000001-e0001/model-00002-of-00002\.safetensors: expected sha256"
    ):
        cache.fetch(v(1))
    assert not (path / "v00000001-e0001").exists()
    data[-1] ^= 1
    shard.write_bytes(data)
    assert contents(cache.fetch(v(1)).directory) == contents(there)


def test_a_copy_that_rots_is_found_and_made_again(weights, cache):
    there = publish(weights, 1, tensors())
    shard = cache.fetch(v(1)).directory / "model-00001-of-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    assert cache.fetch(v(1)).bytes["copied"] == size(weights, 1)
    assert contents(cache.fetch(v(1)).directory) == contents(there)


def test_the_same_number_of_another_epoch_is_another_version(weights, cache):
    publish(weights, 1, tensors(0))
    cache.fetch(v(1))
    save_file(tensors(1), weights.begin(v(1, 2)) / "model.safetensors")
    weights.publish(v(1, 2))
    assert contents(cache.fetch(v(1, 2)).directory) == contents(weights.fetch(v(1, 2)).directory)
    assert contents(cache.fetch(v(1)).directory) == contents(weights.fetch(v(1)).directory)


def test_a_copy_of_another_schema_is_made_again(weights, cache, path):
    there = publish(weights, 1, tensors())
    cache.fetch(v(1))
    cache.close()
    manifest = path / "v00000001-e0001" / MANIFEST
    manifest.write_text(manifest.read_text().replace(f'"schema": {SCHEMA}', f'"schema": {SCHEMA + 1}'))
    assert cache.fetch(v(1)).bytes["copied"] == size(weights, 1)
    assert contents(path / "v00000001-e0001") == contents(there)


def test_a_cache_among_the_published_weights_is_refused(weights):
    for inside in (weights.path, weights.path / "cache"):
        with pytest.raises(WeightsError, match="give a directory of this machine"):
            WeightsCache(weights, inside)


# --- kills


def kill_in_the_middle(weights: Path, path: Path, version: int, whole: int) -> dict[str, int]:
    """A reader killed with SIGKILL while it copies; the bytes of each file that it leaves."""
    for _ in range(10):
        reader = Reader(weights, path, version, chunk=2048)
        left: dict[str, int] = {}
        while sum(left.values()) < whole // 4 and reader.process.poll() is None:
            parts = path.glob(".v*.partial.*/*.safetensors")
            left = {part.name: part.stat().st_size for part in parts}
        reader.process.send_signal(signal.SIGKILL)
        reader.end()
        found = list(path.glob(".v*.partial.*/*.safetensors"))
        if found:
            return {part.name: part.stat().st_size for part in found}
        for copied in path.glob("v*"):  # it was too fast
            copied.rename(path / f".{copied.name}.gone.00000000")
    raise AssertionError("every reader finished before it was killed")


@pytest.mark.slow
def test_a_killed_copy_is_continued_and_nothing_verified_is_copied_again(weights, path):
    there = publish_bytes(weights, 1, 8 << 20)
    left = kill_in_the_middle(weights.path, path, 1, 24 << 20)
    kept = sum(left.values())
    assert 0 < kept < 24 << 20
    successor = Reader(weights.path, path, 1)
    found = successor.result()
    successor.end()
    assert found["kept"] == kept and found["copied"] == (24 << 20) - kept
    assert contents(Path(str(found["directory"]))) == contents(there)
    assert not list(path.glob(".v*"))


def test_what_a_killed_copy_left_is_hashed_not_trusted(weights, cache, path):
    there = publish_bytes(weights, 1, 4 << 20)
    left = kill_in_the_middle(weights.path, path, 1, 12 << 20)
    name = max(left, key=lambda name: left[name])
    (partial,) = path.glob(".v*.partial.*")
    with open(partial / name, "r+b") as file:  # as after a power loss: the right size, the wrong bytes
        file.seek(left[name] // 2)
        file.write(bytes(1000))
    found = cache.fetch(v(1))
    assert found.bytes["kept"] == sum(left.values()) - left[name]
    assert contents(found.directory) == contents(there)


@pytest.mark.slow
def test_readers_of_one_host_copy_once(weights, path):
    publish_bytes(weights, 1, 4 << 20)
    readers = [Reader(weights.path, path, 1, chunk=8192) for _ in range(3)]
    found = [reader.result() for reader in readers]
    for reader in readers:
        reader.end()
    assert sorted(each["copied"] for each in found) == [0, 0, 12 << 20]
    assert all(each["kept"] == 0 for each in found)


def test_a_reader_waits_for_another_copy_up_to_a_deadline_that_names_it(weights, path):
    publish(weights, 1, tensors())
    path.mkdir(parents=True)
    with open(path / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(WeightsError, match=r"another process has held .*\.lock for 0\.2 s, copying weights"):
            WeightsCache(weights, path, wait_seconds=0.2).fetch(v(1))
    assert WeightsCache(weights, path, wait_seconds=0.2).fetch(v(1)).bytes["copied"]


# --- deltas


def test_a_reader_with_the_base_takes_only_the_delta(weights, cache):
    state = tensors()
    publish(weights, 1, state)
    cache.fetch(v(1))
    there = publish(weights, 2, nudged(state, 0.02, 2))
    delta = weights.manifest(v(2)).delta
    assert delta is not None and delta.base == 1 and delta.bytes < 0.06 * size(weights, 2)
    found = cache.fetch(v(2))
    assert found.bytes == {"copied": 0, "kept": 0, "delta": delta.bytes} and found.fallback is None
    assert contents(found.directory) == contents(there)
    assert not (found.directory / DELTA).exists()


def test_an_adapter_is_just_files_too(weights, cache):
    for version, seed in ((1, 0), (2, 1)):
        folder = weights.begin(v(version))
        save_file(nudged(tensors(), 0.1 * seed, 9), folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"r": version}))
        weights.publish(v(version), base=before(weights, version))
        found = cache.fetch(v(version))
    assert found.bytes["delta"] > 0 and found.bytes["copied"] == 0
    assert contents(found.directory) == contents(weights.fetch(v(2)).directory)


def test_a_reader_that_skipped_versions_goes_through_their_deltas(weights, cache, path):
    state = tensors()
    for version in range(1, 5):
        state = nudged(state, 0.01, version)
        publish(weights, version, state)
        if version == 1:
            cache.fetch(v(1))
    found = cache.fetch(v(4))
    assert found.fallback is None and found.bytes["copied"] == 0
    assert found.bytes["delta"] == sum(weights.manifest(v(version)).delta.bytes for version in (2, 3, 4))
    assert contents(found.directory) == contents(weights.fetch(v(4)).directory)
    assert sorted(entry.name for entry in path.iterdir()) == [".lock", "v00000004-e0001"]


def test_without_the_base_the_full_files_are_copied(weights, cache):
    state = tensors()
    publish(weights, 1, state)
    publish(weights, 2, nudged(state, 0.02, 2))
    found = cache.fetch(v(2))
    assert found.fallback == "base" and found.bytes == {"copied": size(weights, 2), "kept": 0, "delta": 0}


def test_a_base_of_the_same_number_and_another_epoch_is_not_used(weights, cache):
    save_file(tensors(7), weights.begin(v(1, 2)) / "model.safetensors")
    weights.publish(v(1, 2))
    cache.fetch(v(1, 2))
    publish(weights, 1, tensors(0))
    save_file(nudged(tensors(0), 0.02, 2), weights.begin(v(2)) / "model.safetensors")
    weights.publish(v(2), base=v(1))
    found = cache.fetch(v(2))
    assert found.bytes["delta"] == 0
    assert contents(found.directory) == contents(weights.fetch(v(2)).directory)


@pytest.mark.parametrize("damage", ["flipped", "cut", "other", "longer", "gone", "link"])
def test_a_damaged_delta_is_a_full_copy_never_an_error(weights, cache, path, damage):
    state = tensors()
    publish(weights, 1, state)
    cache.fetch(v(1))
    there = publish(weights, 2, nudged(state, 0.02, 2))
    delta = there / DELTA
    data = bytearray(delta.read_bytes())
    if damage == "flipped":
        data[-1] ^= 1
        delta.write_bytes(data)
    elif damage == "cut":
        delta.write_bytes(data[:-10])
    elif damage == "other":
        delta.write_bytes(os.urandom(len(data)))
    elif damage == "longer":
        manifest = json.loads((there / "manifest.json").read_text())
        manifest["delta"]["bytes"] += 1
        (there / "manifest.json").write_text(json.dumps(manifest))
        delta.write_bytes(data + b"x")
    else:
        delta.unlink()
        if damage == "link":
            delta.symlink_to(there / "config.json")
    found = cache.fetch(v(2))
    assert found.fallback == "damaged" and found.bytes["copied"] == size(weights, 2)
    copied, published = contents(found.directory), contents(weights.fetch(v(2)).directory)
    assert copied.pop("manifest.json") and published.pop("manifest.json")
    assert copied == published
    assert not list(path.glob(".v*"))


def test_a_rotten_base_is_a_full_copy(weights, cache):
    state = tensors()
    publish(weights, 1, state)
    shard = cache.fetch(v(1)).directory / "model-00001-of-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-7] ^= 1
    shard.write_bytes(data)
    publish(weights, 2, nudged(state, 0.0001, 2))
    found = cache.fetch(v(2))
    assert found.fallback == "damaged" and contents(found.directory) == contents(weights.fetch(v(2)).directory)


def test_no_delta_where_it_would_not_be_small(weights):
    publish(weights, 1, tensors(0))
    assert weights.manifest(v(1)).delta is None  # nothing before it
    folder = publish(weights, 2, tensors(1))
    assert weights.manifest(v(2)).delta is None and not (folder / DELTA).exists()
    assert "delta" not in json.loads((folder / "manifest.json").read_text())
    publish(weights, 3, tensors(1), delta=False)
    assert weights.manifest(v(3)).delta is None


def test_a_damaged_base_does_not_stop_the_writer(weights):
    base = publish(weights, 1, tensors())
    (base / "manifest.json").write_text("{")
    publish(weights, 2, tensors())
    assert weights.manifest(v(2)).delta is None and weights.fetch(v(2))


def test_a_shape_that_changes_is_carried_whole(weights, cache):
    small = tensors(0, 100) | {"layer0": tensors()["layer0"], "layer1": tensors()["layer1"]}
    publish(weights, 1, small)
    cache.fetch(v(1))
    publish(weights, 2, small | {"layer2": tensors(0, 101)["layer2"]})
    found = cache.fetch(v(2))
    assert found.bytes["delta"] > 0 and found.bytes["copied"] == 0
    assert contents(found.directory) == contents(weights.fetch(v(2)).directory)


# --- holding and removing


def test_only_the_newest_stays_when_nobody_holds_another(weights, cache, path):
    for version in (1, 2, 3):
        publish(weights, version, tensors(version))
        cache.fetch(v(version))
    assert sorted(entry.name for entry in path.iterdir()) == [".lock", "v00000003-e0001"]
    cache.fetch(v(1))  # an evaluation of an older version
    assert sorted(entry.name for entry in path.iterdir()) == [".lock", "v00000001-e0001", "v00000003-e0001"]


def test_what_another_process_holds_stays_until_it_dies(weights, cache, path):
    for version in (1, 2, 3):
        publish(weights, version, tensors(version))
    other = Reader(weights.path, path, 1, hold=True)
    other.result()
    cache.fetch(v(2))
    assert sorted(entry.name for entry in path.glob("v*")) == ["v00000001-e0001", "v00000002-e0001"]
    other.end()
    cache.fetch(v(3))
    assert [entry.name for entry in path.glob("v*")] == ["v00000003-e0001"]


def test_copies_of_a_former_run_of_the_same_name_go(weights, cache, path, tmp_path):
    publish(weights, 100, tensors(5))
    cache.fetch(v(100))
    cache.close()
    fresh = DirectoryStore(tmp_path / "fresh")
    publish(fresh, 0, tensors(6))
    WeightsCache(fresh, path).fetch(v(0))
    assert [entry.name for entry in path.glob("v*")] == ["v00000000-e0001"]


@pytest.mark.slow
def test_versions_deleted_under_a_reader_are_missing_never_half(weights, path):
    """A writer publishes and deletes as fast as it can, with deltas, while a reader follows."""
    program = """
import sys
from pathlib import Path
from broker.queue.state import VersionName
from broker.weights.directory import DirectoryStore
weights, data = DirectoryStore(Path(sys.argv[1])), bytearray(300_000)
for version in range(1, 60):
    name = VersionName(version, 1)
    folder = weights.begin(name)
    data[version * 1000] = version
    (folder / "model.safetensors").write_bytes(data)
    weights.publish(name, base=VersionName(version - 1, 1))
    weights.keep(weights.versions()[-2:], 1)
"""
    publish_bytes(weights, 0, 1000, 1)
    writer = subprocess.Popen([sys.executable, "-c", program, weights.path], cwd=ROOT)
    cache, seen = WeightsCache(weights, path), []
    deadline = time.monotonic() + 120
    while writer.poll() is None or not seen or seen[-1] != 59:
        assert time.monotonic() < deadline
        newest = weights.versions()[-1].number
        try:
            found = cache.fetch(v(newest))
        except WeightsMissing:
            continue
        seen.append(newest)
        if newest:
            data = (found.directory / "model.safetensors").read_bytes()
            assert [data[number * 1000] for number in range(1, newest + 2)] == [*range(1, newest + 1), 0]
    assert writer.returncode == 0
