"""Copying and hashing of weight files in one pass, so that no file is read twice.

Hashing a large file costs about as much as copying it (SHA-256 with the processor's instructions: 0.7 s a GB), and the
kernel reads ahead and writes behind meanwhile. What remains to be gained is several files side by side.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import BufferedIOBase, FileIO
from pathlib import Path
from typing import Literal, TypeVar

CHUNK = 1 << 20
THREADS = 4
"""Files processed side by side: a model has a few shards, and a shared file system gives one reader a part of its
speed."""

Part = Literal["fetch", "verify"]
Source = Literal["copied", "kept", "delta"]
T = TypeVar("T")


@dataclass
class CopyStats:
    """Time and bytes that copying, rebuilding or hashing some files took."""

    seconds: dict[Part, float] = field(default_factory=lambda: {"fetch": 0.0, "verify": 0.0})
    """Busy seconds: `fetch` (reading and writing), `verify` (hashing)."""
    bytes: dict[Source, int] = field(default_factory=lambda: {"copied": 0, "kept": 0, "delta": 0})
    """By origin: the published files, an interrupted earlier copy, a delta."""

    def add(self, other: CopyStats) -> None:
        for part, seconds in other.seconds.items():
            self.seconds[part] += seconds
        for source, count in other.bytes.items():
            self.bytes[source] += count

    def timed(self, part: Part, call: Callable[[], T]) -> T:
        """The result of `call`; its duration is added to `part`."""
        start = time.perf_counter()
        try:
            return call()
        finally:
            self.seconds[part] += time.perf_counter() - start

    def shares(self, wall: float) -> dict[Part, float]:
        """`wall` seconds divided in proportion to the busy seconds, which overlap because files run side by side."""
        busy = sum(self.seconds.values())
        return {part: wall * seconds / busy if busy else 0.0 for part, seconds in self.seconds.items()}


def digest(file: BufferedIOBase | FileIO, stats: CopyStats) -> str:
    """SHA-256 (hex) of the file from its current position to its end."""
    sha = hashlib.sha256()
    for chunk in _chunks(file, stats):
        stats.timed("verify", partial(sha.update, chunk))
    return sha.hexdigest()


def copy(source: BufferedIOBase | FileIO, target: Path, size: int, stats: CopyStats) -> str:
    """Copy `source`, which has `size` bytes, to `target`; returns the SHA-256 (hex) of what `target` then holds.

    An existing `target` is taken as the beginning of an interrupted copy and continued. Its bytes are hashed as they
    are, so comparing the returned hash with the expected one shows whether they were right.
    """
    sha = hashlib.sha256()
    # A pipe of that name would be opened, and never end, without O_NONBLOCK; it cannot be sought, which ends the copy.
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    with open(descriptor, "r+b", buffering=0) as written:
        os.lseek(descriptor, 0, os.SEEK_SET)
        if os.fstat(descriptor).st_size > size:
            written.truncate(0)
        for chunk in _chunks(written, stats):
            stats.timed("verify", partial(sha.update, chunk))
            stats.bytes["kept"] += len(chunk)
        source.seek(written.tell())
        for chunk in _chunks(source, stats):
            _write(written, chunk, stats)
            stats.timed("verify", partial(sha.update, chunk))
            stats.bytes["copied"] += len(chunk)
    return sha.hexdigest()


def save(pieces: Iterator[bytes], target: Path, stats: CopyStats) -> str:
    """Write `pieces` to the new file `target`; returns its SHA-256 (hex). Producing the pieces counts as `fetch`."""
    sha = hashlib.sha256()
    with open(target, "xb", buffering=0) as written:
        while (piece := stats.timed("fetch", lambda: next(pieces, None))) is not None:
            _write(written, memoryview(piece), stats)
            stats.timed("verify", partial(sha.update, piece))
    return sha.hexdigest()


def for_each(items: Iterable[T], call: Callable[[T, CopyStats], None], stats: CopyStats) -> None:
    """`call(item, its own stats)` for every item, several side by side; `stats` gets the sum.

    The first error is raised once all calls have ended.
    """

    def one(item: T) -> CopyStats:
        own = CopyStats()
        call(item, own)
        return own

    with ThreadPoolExecutor(THREADS, thread_name_prefix="weight-files") as pool:
        for own in pool.map(one, items):
            stats.add(own)


def _write(file: FileIO, data: memoryview, stats: CopyStats) -> None:
    """Write all of `data`; a raw file may take several calls."""
    while data:
        data = data[stats.timed("fetch", partial(file.write, data)) :]


def _chunks(file: BufferedIOBase | FileIO, stats: CopyStats) -> Iterator[memoryview]:
    """The rest of the file; each chunk is valid until the next."""
    buffer = memoryview(bytearray(CHUNK))
    while count := stats.timed("fetch", partial(file.readinto, buffer)):
        yield buffer[:count]
