"""Bytes of weight files on their way: hashed as they pass, so that nothing is read twice. Knows no versions.

A large file costs about as much to hash as to copy (SHA-256 with the processor's instructions: 0.7 s a GB), and the
kernel reads ahead and writes behind meanwhile; what is left to gain is several files side by side.
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
"""Files side by side: a model's shards are a few, and a shared file system gives one reader a part of its speed."""

Part = Literal["fetch", "verify"]
Source = Literal["copied", "kept", "delta"]
T = TypeVar("T")


@dataclass
class Tally:
    """What the passage of some files took."""

    seconds: dict[Part, float] = field(default_factory=lambda: {"fetch": 0.0, "verify": 0.0})
    """Busy seconds: reading and writing; hashing."""
    bytes: dict[Source, int] = field(default_factory=lambda: {"copied": 0, "kept": 0, "delta": 0})
    """By where they came from: the published files; what a copy that was cut off had left; a delta."""

    def add(self, other: Tally) -> None:
        for part, seconds in other.seconds.items():
            self.seconds[part] += seconds
        for source, count in other.bytes.items():
            self.bytes[source] += count

    def timed(self, part: Part, call: Callable[[], T]) -> T:
        """The call's result, its seconds counted."""
        start = time.perf_counter()
        try:
            return call()
        finally:
            self.seconds[part] += time.perf_counter() - start

    def shares(self, wall: float) -> dict[Part, float]:
        """`wall` seconds divided as the busy seconds were: files pass side by side."""
        busy = sum(self.seconds.values())
        return {part: wall * seconds / busy if busy else 0.0 for part, seconds in self.seconds.items()}


def digest(file: BufferedIOBase | FileIO, tally: Tally) -> str:
    """SHA-256 (hex) of the file from where it stands to its end."""
    sha = hashlib.sha256()
    for chunk in _chunks(file, tally):
        tally.timed("verify", partial(sha.update, chunk))
    return sha.hexdigest()


def copy(source: BufferedIOBase | FileIO, target: Path, size: int, tally: Tally) -> str:
    """Copy `source`, which has `size` bytes, to `target`; returns the SHA-256 (hex) of what `target` then holds.

    A `target` that is there is the beginning of an earlier copy and is continued. Its bytes enter the hash as they are:
    whoever compares the hash finds out whether they were right.
    """
    sha = hashlib.sha256()
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with open(descriptor, "r+b", buffering=0) as written:
        if os.fstat(descriptor).st_size > size:
            written.truncate(0)
        for chunk in _chunks(written, tally):
            tally.timed("verify", partial(sha.update, chunk))
            tally.bytes["kept"] += len(chunk)
        source.seek(written.tell())
        for chunk in _chunks(source, tally):
            _write(written, chunk, tally)
            tally.timed("verify", partial(sha.update, chunk))
            tally.bytes["copied"] += len(chunk)
    return sha.hexdigest()


def save(pieces: Iterator[bytes], target: Path, tally: Tally) -> str:
    """Write a new file of these pieces; returns its SHA-256 (hex). Making the pieces counts as fetching."""
    sha = hashlib.sha256()
    with open(target, "xb", buffering=0) as written:
        while (piece := tally.timed("fetch", lambda: next(pieces, None))) is not None:
            _write(written, memoryview(piece), tally)
            tally.timed("verify", partial(sha.update, piece))
    return sha.hexdigest()


def each(work: Iterable[T], call: Callable[[T, Tally], None], tally: Tally) -> None:
    """`call(item, its tally)` for every item, several side by side; the first error is raised when all have ended."""

    def one(item: T) -> Tally:
        mine = Tally()
        call(item, mine)
        return mine

    with ThreadPoolExecutor(THREADS, thread_name_prefix="passage") as pool:
        for mine in pool.map(one, work):
            tally.add(mine)


def _write(file: FileIO, data: memoryview, tally: Tally) -> None:
    """All of `data`, however many writes that takes."""
    while data:
        data = data[tally.timed("fetch", partial(file.write, data)) :]


def _chunks(file: BufferedIOBase | FileIO, tally: Tally) -> Iterator[memoryview]:
    """The rest of the file; each chunk is valid until the next."""
    buffer = memoryview(bytearray(CHUNK))
    while count := tally.timed("fetch", partial(file.readinto, buffer)):
        yield buffer[:count]
