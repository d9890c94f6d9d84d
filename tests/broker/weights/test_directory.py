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
from tests.broker.builders import v


def publish(weights: DirectoryStore, version: int, content: bytes = b"tensors", epoch: int = 1) -> Path:
    folder = weights.begin(v(version, epoch))
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_text("{}")
    weights.publish(v(version, epoch), {"step": version})
    return version_path(weights.path, v(version, epoch))


@pytest.fixture
def weights(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "weights")


def edit_manifest(folder: Path, **change: object) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_a_published_version_is_fetched_with_its_meta(weights: DirectoryStore) -> None:
    folder = publish(weights, 7)
    assert weights.fetch(v(7)).directory == folder
    assert folder.name == "v00000007-e0001"
    assert weights.manifest(v(7)).meta == {"step": 7}
    assert weights.versions() == [v(7)]


def test_nothing_is_visible_before_publish(weights: DirectoryStore) -> None:
    folder = weights.begin(v(0))
    (folder / "model.safetensors").write_bytes(b"half")
    assert weights.versions() == []
    with pytest.raises(WeightsMissing, match="no version is there yet"):
        weights.fetch(v(0))


def test_a_late_joiner_takes_the_newest(weights: DirectoryStore) -> None:
    for version in (0, 2, 11):
        publish(weights, version)
    assert DirectoryStore(weights.path).versions() == [v(0), v(2), v(11)]
    with pytest.raises(WeightsMissing, match=r"version v00000003-e0001 .* newest there is v00000011-e0001"):
        weights.fetch(v(3))


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
        weights.fetch(v(1))


def test_a_truncated_file_is_named_with_both_sizes(weights: DirectoryStore) -> None:
    path = publish(weights, 1, bytes(4096)) / "model.safetensors"
    os.truncate(path, 4000)
    with pytest.raises(WeightsCorrupt, match=r"model\.safetensors: expected 4096 bytes, found 4000"):
        weights.fetch(v(1))


def test_a_missing_file_is_corrupt_not_missing(weights: DirectoryStore) -> None:
    (publish(weights, 1) / "config.json").unlink()
    with pytest.raises(WeightsCorrupt, match=r"config\.json: expected 2 bytes, found none"):
        weights.fetch(v(1))


def test_a_directory_without_manifest_is_corrupt(weights: DirectoryStore) -> None:
    (publish(weights, 1) / MANIFEST).unlink()
    with pytest.raises(WeightsCorrupt, match="expected a manifest, found none"):
        weights.fetch(v(1))


def test_an_unlisted_file_is_refused_because_a_loader_might_read_it(weights: DirectoryStore) -> None:
    (publish(weights, 1) / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightsCorrupt, match=r"found also 'model\.safetensors\.index\.json'"):
        weights.fetch(v(1))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", "null", '{"schema": 2, "version": 1, "epoch": 1, "files": {}, "published_at": 0}']
)
def test_a_damaged_manifest_is_corrupt(weights: DirectoryStore, text: str) -> None:
    (publish(weights, 1) / MANIFEST).write_text(text)
    with pytest.raises(WeightsCorrupt, match="expected a manifest"):
        weights.fetch(v(1))


@pytest.mark.parametrize("schema", [SCHEMA + 1, 0, None, "1", [SCHEMA]])
def test_a_manifest_of_another_schema_is_refused_with_what_this_release_reads(
    weights: DirectoryStore, schema: object
) -> None:
    edit_manifest(publish(weights, 1), schema=schema)
    expected = rf"manifest\.json: expected a manifest of schema {SCHEMA}, .* found schema {re.escape(str(schema))}; run"
    for read in (weights.fetch, weights.open, weights.manifest):
        with pytest.raises(WeightsCorrupt, match=expected):
            read(v(1))


def test_a_manifest_without_a_schema_is_refused(weights: DirectoryStore) -> None:
    path = publish(weights, 1) / MANIFEST
    path.write_text(json.dumps({key: one for key, one in json.loads(path.read_text()).items() if key != "schema"}))
    with pytest.raises(WeightsCorrupt, match=f"expected a manifest of schema {SCHEMA}, .* found schema None"):
        weights.fetch(v(1))


def test_a_manifest_of_another_version_is_corrupt(weights: DirectoryStore) -> None:
    edit_manifest(publish(weights, 1), version=2)
    with pytest.raises(WeightsCorrupt, match="expected version v00000001-e0001, found v00000002-e0001"):
        weights.fetch(v(1))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", ".", "a/b", ".hidden", "a\\..\\b/", "", "a\n"])
def test_a_manifest_cannot_name_a_file_outside(weights: DirectoryStore, name: str) -> None:
    folder = publish(weights, 1)
    (weights.path / "secret").write_bytes(b"x")
    entry = json.loads((folder / MANIFEST).read_text())["files"]["config.json"]
    edit_manifest(folder, files={name: entry})
    with pytest.raises(WeightsCorrupt, match="expected a manifest, found files"):
        weights.fetch(v(1))


def test_a_symlink_in_place_of_a_file_is_refused(weights: DirectoryStore, tmp_path: Path) -> None:
    path = publish(weights, 1) / "config.json"
    outside = tmp_path / "outside.json"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(WeightsCorrupt, match=r"config\.json"):
        weights.fetch(v(1))


def test_only_plain_files_can_be_published(weights: DirectoryStore, tmp_path: Path) -> None:
    folder = weights.begin(v(1))
    (folder / "model.safetensors").symlink_to(tmp_path)
    with pytest.raises(WeightsError, match="not a plain visible file"):
        weights.publish(v(1))
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="is empty"):
        weights.publish(v(1))
    with pytest.raises(WeightsError, match="not begun"):
        weights.publish(v(2))


def test_two_writers_of_one_number_never_touch_each_others_files(weights: DirectoryStore) -> None:
    stalled = DirectoryStore(weights.path)
    folder = stalled.begin(v(1, 2))
    (folder / "model.safetensors").write_bytes(b"of the learner that was replaced")
    publish(weights, 1, b"of its successor", epoch=3)
    stalled.publish(v(1, 2))
    assert weights.versions() == [v(1, 2), v(1, 3)]
    assert (weights.fetch(v(1, 3)).directory / "model.safetensors").read_bytes() == b"of its successor"
    assert weights.fetch(v(1, 2)).identity != weights.fetch(v(1, 3)).identity


def test_a_version_that_is_there_stays_as_it_is(weights: DirectoryStore) -> None:
    """Published again by the same learner after a lost reply."""
    publish(weights, 1, b"first")
    folder = weights.begin(v(1))
    (folder / "model.safetensors").write_bytes(b"second")
    assert weights.publish(v(1)).identity == weights.fetch(v(1)).identity
    assert (weights.fetch(v(1)).directory / "model.safetensors").read_bytes() == b"first"
    assert os.listdir(weights.path) == ["v00000001-e0001"]


def test_keep_deletes_what_nobody_needs(weights: DirectoryStore) -> None:
    for version in range(6):
        publish(weights, version)
    assert weights.keep({v(0), v(3), v(4), v(5)}, 1) == [v(1), v(2)]
    assert weights.versions() == [v(0), v(3), v(4), v(5)]
    assert len(os.listdir(weights.path)) == 4


def test_keep_clears_what_earlier_learners_left_and_touches_nothing_of_later_ones(weights: DirectoryStore) -> None:
    dead = DirectoryStore(weights.path).begin(v(4, 1))
    later = DirectoryStore(weights.path).begin(v(4, 3))
    ours = weights.begin(v(5, 2))
    publish(weights, 3, epoch=1)
    published_later = publish(weights, 4, epoch=3)
    assert weights.keep((), 2) == [v(3, 1)]
    assert not dead.exists()
    assert later.exists() and ours.exists() and published_later.exists()


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
        weights.keep([v(version)], 1)
    done.set()
    for reader in readers:
        reader.join()
    assert other == []
    assert fetched[0] > 0
    assert weights.fetch(v(40))


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_whole_versions_only(weights: DirectoryStore) -> None:
    """A real process publishes as fast as it can and is killed with SIGKILL, five times."""
    program = """
import os, sys
from pathlib import Path
from broker.queue.state import VersionName
from broker.weights.directory import DirectoryStore
weights = DirectoryStore(Path(sys.argv[1]))
number = max((name.number for name in weights.versions()), default=0) + 1
while True:
    name = VersionName(number, 1)
    folder = weights.begin(name)
    for part in range(3):
        (folder / f"part{part}.safetensors").write_bytes(os.urandom(50_000))
    weights.publish(name)
    weights.keep(weights.versions()[-3:], 1)
    print(number, flush=True)
    number += 1
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
        assert weights.versions()[-1].number >= printed
        for name in weights.versions():
            weights.fetch(name)
    shutil.rmtree(weights.path)
