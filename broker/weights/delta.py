"""The difference between two versions of a file, word by word: streams in, streams out; no versions, no paths.

One optimiser step at a small learning rate leaves most 16-bit weights as they are. Files of the same size are compared
as arrays of words of the tensors' element size (2 bytes for bfloat16), a block at a time, so that memory stays small:

    file    = word size (u8; 0: the whole new file follows), size in bytes (u64), blocks
    block   = kind (u8), number of changed words (u32), their positions, the new words
    positions = gaps between changed words, one or two bytes each, or one bit for every word: whichever is shortest

All numbers are little-endian. A delta is not trusted: sizes and positions are checked here, and the caller compares the
result with the SHA-256 of the full file.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from broker.errors import WeightsError

DELTA = ".delta"
"""Name of the file beside a version's own; hidden, so that no loader takes it for weights."""
BLOCK = 1 << 16
"""Words compared at once: positions fit 16 bits."""
LARGEST_SHARE = 0.5
"""Of the full files: a larger delta is not worth the reader's work of applying it."""
CHUNK = 1 << 20
_FILE, _BLOCK = struct.Struct("<BQ"), struct.Struct("<BI")
_WORDS: dict[int, Any] = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4")}
_BYTES, _PAIRS, _BITS = 1, 2, 3
_HEADER_BYTES = 100 << 20
"""Safetensors' own limit."""
_NARROW = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}

Words = NDArray[Any]
Fallback = Literal["base", "damaged"]
"""Why a delta was not used: its base is not held here, or applying it did not give what was published."""


class DeltaUnusable(WeightsError):
    """A delta that does not fit or is damaged; the full files are copied instead."""

    def __init__(self, message: str, reason: Fallback = "damaged") -> None:
        super().__init__(message)
        self.reason: Fallback = reason


def word_size(file: BinaryIO, size: int) -> int:
    """The word size, 1, 2 or 4 bytes, for comparing a file of `size` bytes: that of its smallest tensor element for
    safetensors, 1 for any other file."""
    head = file.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or not 2 <= length <= min(size - 8, _HEADER_BYTES):
        return 1
    try:
        tensors = json.loads(file.read(length))
        kinds = {entry["dtype"] for name, entry in tensors.items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return 1
    word = min((1 if str(kind).startswith("F8") else _NARROW.get(kind, 4) for kind in kinds), default=1)
    return word if (8 + length) % word == 0 and size % word == 0 else 1


def diff(base: BinaryIO | None, new: BinaryIO, size: int, word: int) -> Iterator[bytes]:
    """The delta of one file of `size` bytes, in pieces, from `base` of the same size; with None the whole file."""
    if base is None:
        yield _FILE.pack(0, size)
        while chunk := new.read(CHUNK):
            yield chunk
        return
    kind = _WORDS[word]
    yield _FILE.pack(word, size)
    while data := new.read(BLOCK * word):
        yield diff_block(np.frombuffer(base.read(len(data)), kind), np.frombuffer(data, kind))


def apply(delta: BinaryIO, base: BinaryIO | None, size: int) -> Iterator[bytes]:
    """The new file of `size` bytes, in pieces, from its delta and `base`. Raises DeltaUnusable."""
    word, found = _FILE.unpack(_read(delta, _FILE.size))
    if found != size or (word and (word not in _WORDS or base is None or size % word)):
        raise DeltaUnusable(f"the delta is for a file of {found} bytes in words of {word}, the file has {size}")
    left = size
    while left:
        if word == 0 or base is None:
            data = _read(delta, min(left, CHUNK))
        else:
            block = np.frombuffer(_read(base, min(left, BLOCK * word)), _WORDS[word])
            data = apply_block(delta, block)
        left -= len(data)
        yield data


def diff_block(base: Words, new: Words) -> bytes:
    """The block for two arrays of the same shape (n,), n ≤ BLOCK, and the same unsigned dtype."""
    changed = base != new
    index = np.flatnonzero(changed)
    gaps = np.diff(index, prepend=0)
    options = {_BITS: (len(new) + 7) // 8, _PAIRS: 2 * len(index)}
    if not len(index) or gaps.max() < 256:
        options[_BYTES] = len(index)
    kind = min(options, key=lambda option: (options[option], option))
    where = np.packbits(changed) if kind == _BITS else gaps.astype(_WORDS[kind])
    return _BLOCK.pack(kind, len(index)) + where.tobytes() + new[index].tobytes()


def apply_block(delta: BinaryIO, base: Words) -> bytes:
    """The new words as bytes, from `base` (n,) and the next block of the delta. Raises DeltaUnusable."""
    kind, count = _BLOCK.unpack(_read(delta, _BLOCK.size))
    if kind not in (_BYTES, _PAIRS, _BITS) or count > len(base):
        raise DeltaUnusable(f"the delta has a block of kind {kind} with {count} of {len(base)} words changed")
    if kind == _BITS:
        bits = np.frombuffer(_read(delta, (len(base) + 7) // 8), np.uint8)
        index = np.flatnonzero(np.unpackbits(bits, count=len(base)))
    else:
        index = np.cumsum(np.frombuffer(_read(delta, count * kind), _WORDS[kind]), dtype=np.int64)
    if len(index) != count or (count and index[-1] >= len(base)):
        raise DeltaUnusable(
            f"the delta changes words outside a block of {len(base)}, or not as many as its count {count}"
        )
    new = base.copy()
    new[index] = np.frombuffer(_read(delta, count * base.dtype.itemsize), base.dtype)
    return new.tobytes()


def _read(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise DeltaUnusable(f"expected {count} more bytes, found {len(data)}: the delta or its base is cut off")
    return data
