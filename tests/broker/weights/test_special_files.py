"""Versions in which something stands for a file that is none: refused without being opened, so that nobody waits."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.errors import WeightsCorrupt
from broker.plain_files import NotPlain, open_plain, read_plain
from broker.queue.state import VersionName
from broker.weights.directory import DirectoryStore

KINDS: dict[str, Callable[[Path], object]] = {
    "a named pipe": os.mkfifo,
    "a socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "a directory": Path.mkdir,
    "a symbolic link": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["manifest.json", "model.safetensors"])
def test_a_special_file_in_a_version_is_refused_by_its_name(tmp_path: Path, kind: str, file: str) -> None:
    store, name = DirectoryStore(tmp_path), VersionName(1, 1)
    (store.begin(name) / "model.safetensors").write_bytes(b"x" * 10)
    store.publish(name)
    path = store.fetch(name).directory / file
    path.unlink()
    KINDS[kind](path)
    with pytest.raises(WeightsCorrupt, match=rf"{file}.*is {kind}"):
        store.fetch(name)


@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    KINDS[kind](path)
    with pytest.raises(NotPlain, match=f"is {kind}"):
        open_plain(path, links=False)
    with pytest.raises(NotPlain, match=r"is (a device|a named pipe|a socket|a directory)"):
        read_plain(path, 10)


def test_a_file_has_at_most_the_bytes_that_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_plain(path, 5) == b"12345"
    with pytest.raises(NotPlain, match="more than 4 bytes"):
        read_plain(path, 4)
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "y", 4)
