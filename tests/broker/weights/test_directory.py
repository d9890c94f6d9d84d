"""The directory store: a version is whole or absent, checked before use, and never outside its directory."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import WeightsCorrupt, WeightsError, WeightsMissing
from broker.weights.directory import DirectoryStore
from broker.weights.manifest import MANIFEST, SCHEMA
from broker.weights.reader import version_path


def publish(weights: DirectoryStore, version: int, content: bytes = b"tensors") -> Path:
    folder = weights.begin(version)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_text("{}")
    weights.publish(version, {"step": version})
    return version_path(weights.path, version)


@pytest.fixture
def weights(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "weights")


def edit_manifest(folder: Path, **change: object) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_a_published_version_is_fetched_with_its_meta(weights: DirectoryStore) -> None:
    folder = publish(weights, 7)
    assert weights.fetch(7).directory == folder
    assert folder.name == "v00000007"
    assert weights.manifest(7).meta == {"step": 7}
    assert weights.versions() == [7]


def test_nothing_is_visible_before_publish(weights: DirectoryStore) -> None:
    folder = weights.begin(0)
    (folder / "model.safetensors").write_bytes(b"half")
    assert weights.versions() == []
    with pytest.raises(WeightsMissing, match="no version is published"):
        weights.fetch(0)


def test_a_late_joiner_takes_the_newest(weights: DirectoryStore) -> None:
    for version in (0, 2, 11):
        publish(weights, version)
    assert DirectoryStore(weights.path).versions() == [0, 2, 11]
    with pytest.raises(WeightsMissing, match=r"version 3 .* newest there is 11"):
        weights.fetch(3)


def test_files_are_readable_by_other_users_of_the_directory(weights: DirectoryStore) -> None:
    umask = os.umask(0o022)
    try:
        folder = publish(weights, 0)
    finally:
        os.umask(umask)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644


@given(at=st.integers(0, 4095), bit=st.integers(0, 7))
@settings(max_examples=40, deadline=None)
def test_any_flipped_bit_is_found_and_named(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    weights = DirectoryStore(tmp_path_factory.mktemp("bits"))
    path = publish(weights, 1, bytes(4096)) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(WeightsCorrupt, match=r"model\.safetensors: expected sha256 \w{16}…, found \w{16}…"):
        weights.fetch(1)


def test_a_truncated_file_is_named_with_both_sizes(weights: DirectoryStore) -> None:
    path = publish(weights, 1, bytes(4096)) / "model.safetensors"
    os.truncate(path, 4000)
    with pytest.raises(WeightsCorrupt, match=r"model\.safetensors: expected 4096 bytes, found 4000"):
        weights.fetch(1)


def test_a_missing_file_is_corrupt_not_missing(weights: DirectoryStore) -> None:
    (publish(weights, 1) / "config.json").unlink()
    with pytest.raises(WeightsCorrupt, match=r"config\.json: expected 2 bytes, found none"):
        weights.fetch(1)


def test_a_directory_without_manifest_is_corrupt(weights: DirectoryStore) -> None:
    (publish(weights, 1) / MANIFEST).unlink()
    with pytest.raises(WeightsCorrupt, match="expected a manifest, found none"):
        weights.fetch(1)


def test_an_unlisted_file_is_refused_because_a_loader_might_read_it(weights: DirectoryStore) -> None:
    (publish(weights, 1) / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightsCorrupt, match=r"found also 'model\.safetensors\.index\.json'"):
        weights.fetch(1)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", "null", '{"schema": 1, "version": 1, "files": {}, "published_at": 0}']
)
def test_a_damaged_manifest_is_corrupt(weights: DirectoryStore, text: str) -> None:
    (publish(weights, 1) / MANIFEST).write_text(text)
    with pytest.raises(WeightsCorrupt, match="expected a manifest"):
        weights.fetch(1)


@pytest.mark.parametrize("schema", [SCHEMA + 1, 0, None, "1", [SCHEMA]])
def test_a_manifest_of_another_schema_is_refused_with_what_this_release_reads(
    weights: DirectoryStore, schema: object
) -> None:
    edit_manifest(publish(weights, 1), schema=schema)
    expected = rf"manifest\.json: expected a manifest of schema {SCHEMA}, .* found schema {re.escape(str(schema))}; run"
    for read in (weights.fetch, weights.open, weights.manifest):
        with pytest.raises(WeightsCorrupt, match=expected):
            read(1)


def test_a_manifest_without_a_schema_is_refused(weights: DirectoryStore) -> None:
    path = publish(weights, 1) / MANIFEST
    path.write_text(json.dumps({key: one for key, one in json.loads(path.read_text()).items() if key != "schema"}))
    with pytest.raises(WeightsCorrupt, match=f"expected a manifest of schema {SCHEMA}, .* found schema None"):
        weights.fetch(1)


def test_a_manifest_of_another_version_is_corrupt(weights: DirectoryStore) -> None:
    edit_manifest(publish(weights, 1), version=2)
    with pytest.raises(WeightsCorrupt, match="expected version 1, found 2"):
        weights.fetch(1)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", ".", "a/b", ".hidden", "a\\..\\b/", "", "a\n"])
def test_a_manifest_cannot_name_a_file_outside(weights: DirectoryStore, name: str) -> None:
    folder = publish(weights, 1)
    (weights.path / "secret").write_bytes(b"x")
    entry = json.loads((folder / MANIFEST).read_text())["files"]["config.json"]
    edit_manifest(folder, files={name: entry})
    with pytest.raises(WeightsCorrupt, match="expected a manifest, found files"):
        weights.fetch(1)


def test_a_symlink_in_place_of_a_file_is_refused(weights: DirectoryStore, tmp_path: Path) -> None:
    path = publish(weights, 1) / "config.json"
    outside = tmp_path / "outside.json"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(WeightsCorrupt, match=r"config\.json"):
        weights.fetch(1)


def test_only_plain_files_can_be_published(weights: DirectoryStore, tmp_path: Path) -> None:
    folder = weights.begin(1)
    (folder / "model.safetensors").symlink_to(tmp_path)
    with pytest.raises(WeightsError, match="not a plain visible file"):
        weights.publish(1)
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="is empty"):
        weights.publish(1)
    with pytest.raises(WeightsError, match="not begun"):
        weights.publish(2)


def test_a_version_left_by_a_dead_writer_is_replaced_whole(weights: DirectoryStore) -> None:
    publish(weights, 1, b"of the learner that died before the pointer moved")
    again = DirectoryStore(weights.path)
    assert (publish(again, 1, b"of its successor") / "model.safetensors").read_bytes() == b"of its successor"
    assert again.fetch(1)
    assert again.versions() == [1]


def test_keep_deletes_what_nobody_needs(weights: DirectoryStore) -> None:
    for version in range(6):
        publish(weights, version)
    assert weights.keep(2, {0, 3}) == [1, 2]
    assert weights.versions() == [0, 3, 4, 5]
    assert sorted(os.listdir(weights.path)) == ["v00000000", "v00000003", "v00000004", "v00000005"]
    with pytest.raises(ValueError, match="keep 0"):
        weights.keep(0)


def test_keep_clears_what_a_dead_writer_left_but_not_what_is_being_written(weights: DirectoryStore) -> None:
    dead = DirectoryStore(weights.path).begin(4)
    fresh = DirectoryStore(weights.path).begin(4)
    ours = weights.begin(5)
    long_ago = time.time() - 10_000
    for folder in (dead, ours):
        os.utime(folder, (long_ago, long_ago))
    publish(weights, 3)
    weights.keep(1)
    assert not dead.exists()
    assert fresh.exists()
    assert ours.exists()


@pytest.mark.slow
def test_a_reader_during_deletion_is_told_to_take_a_newer_one(weights: DirectoryStore) -> None:
    """40 versions are published and deleted under 3 readers: each fetch gives a whole version or WeightsMissing."""
    publish(weights, 0, bytes(200_000))
    done = threading.Event()
    fetched, missing, other = [0], [0], []

    def read() -> None:
        mine = DirectoryStore(weights.path)
        while not done.is_set():
            try:
                mine.fetch(mine.versions()[0])  # the oldest: the one that is about to go
                fetched[0] += 1
            except WeightsMissing:
                missing[0] += 1
            except Exception as error:
                other.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for version in range(1, 41):
        publish(weights, version, os.urandom(200_000))
        weights.keep(1)
    done.set()
    for reader in readers:
        reader.join()
    assert other == []
    assert fetched[0] > 0
    assert weights.fetch(40)


@pytest.mark.slow
def test_a_reader_during_replacement_never_mixes_two_versions(weights: DirectoryStore) -> None:
    publish(weights, 1, bytes(100_000))
    done = threading.Event()
    other: list[Exception] = []

    def read() -> None:
        while not done.is_set():
            try:
                weights.fetch(1)
            except WeightsMissing:
                pass
            except Exception as error:
                other.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    writer = DirectoryStore(weights.path)
    for _ in range(40):
        publish(writer, 1, os.urandom(100_000))
    done.set()
    reader.join()
    assert other == []


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_whole_versions_only(weights: DirectoryStore) -> None:
    """A real process publishes as fast as it can and is killed with SIGKILL, five times."""
    program = """
import os, sys
from pathlib import Path
from broker.weights.directory import DirectoryStore
weights = DirectoryStore(Path(sys.argv[1]))
version = max(weights.versions(), default=0) + 1
while True:
    folder = weights.begin(version)
    for part in range(3):
        (folder / f"part{part}.safetensors").write_bytes(os.urandom(50_000))
    weights.publish(version)
    weights.keep(3)
    print(version, flush=True)
    version += 1
"""
    repository = Path(__file__).parents[3]
    for delay in (0.0, 0.003, 0.007, 0.011, 0.017):
        process = subprocess.Popen(
            [sys.executable, "-c", program, weights.path], stdout=subprocess.PIPE, text=True, cwd=repository
        )
        assert process.stdout is not None
        printed = int(process.stdout.readline())
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdout.close()
        assert weights.versions()[-1] >= printed
        for version in weights.versions():
            weights.fetch(version)
    shutil.rmtree(weights.path)
