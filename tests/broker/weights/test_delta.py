"""Deltas between versions of a file: exact for every pattern of bits, refused when they are damaged."""

from __future__ import annotations

import io
import json
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.weights.delta import BLOCK, DeltaUnusable, apply, apply_block, diff, diff_block, word_size

BITS = st.sampled_from([0x0000, 0x8000, 0x7FC0, 0xFFC1, 0x7F80, 0xFFFF, 0x3F80])
"""bfloat16: both zeros, two NaNs, infinity, all ones, 1."""


def made(base: bytes, new: bytes, word: int) -> bytes:
    return b"".join(diff(io.BytesIO(base), io.BytesIO(new), len(new), word))


def applied(delta: bytes, base: bytes, size: int) -> bytes:
    return b"".join(apply(io.BytesIO(delta), io.BytesIO(base), size))


@given(
    word=st.sampled_from([1, 2, 4]),
    count=st.sampled_from([0, 1, 2, 3, 7, 8, 9, 255, 257, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5]),
    share=st.sampled_from([0.0, 1e-5, 1e-3, 0.01, 0.1, 0.3, 0.9, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
@pytest.mark.slow
def test_base_and_delta_give_the_new_file_exactly(word: int, count: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256**word, count, dtype=np.uint64).astype(f"<u{word}")
    new = np.where(rng.random(count) < share, base ^ base.dtype.type(rng.integers(1, 256**word)), base)
    delta = made(base.tobytes(), new.tobytes(), word)
    assert applied(delta, base.tobytes(), new.nbytes) == new.tobytes()
    changed = int((base != new).sum())
    assert len(delta) <= 9 + 5 * (count // BLOCK + 1) + changed * word + min(2 * changed, count // 8 + 4)


@given(pairs=st.lists(st.tuples(BITS, BITS), max_size=40))
@example(pairs=[(0x0000, 0x8000), (0x7FC0, 0x7FC0), (0x7FC0, 0xFFC1)])
def test_words_are_compared_as_bits_not_as_numbers(pairs: list[tuple[int, int]]) -> None:
    base = np.array([a for a, _ in pairs], "<u2")
    new = np.array([b for _, b in pairs], "<u2")
    delta = diff_block(base, new)
    assert apply_block(io.BytesIO(delta), base) == new.tobytes()
    assert int.from_bytes(delta[1:5], "little") == int((base != new).sum())


def test_a_file_without_a_base_is_carried_whole() -> None:
    new = random.Random(0).randbytes(3_000_001)
    delta = b"".join(diff(None, io.BytesIO(new), len(new), 1))
    assert b"".join(apply(io.BytesIO(delta), None, len(new))) == new


def test_files_follow_each_other_in_one_stream() -> None:
    first, second = bytes(1000), bytes(range(256)) * 40
    stream = io.BytesIO(made(first, first, 4) + made(second, second[::-1], 2))
    assert b"".join(apply(stream, io.BytesIO(first), len(first))) == first
    assert b"".join(apply(stream, io.BytesIO(second), len(second))) == second[::-1]
    assert stream.read() == b""


def test_a_percent_of_changed_bfloat16_costs_four_bytes_each() -> None:
    rng = np.random.default_rng(1)
    base = rng.integers(0, 1 << 16, 1 << 20, dtype=np.uint16)
    new = np.where(rng.random(1 << 20) < 0.01, base ^ 1, base)
    assert len(made(base.tobytes(), new.tobytes(), 2)) < 0.0205 * base.nbytes


@given(cut=st.floats(0, 1, exclude_max=True), flips=st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 255))))
@settings(max_examples=200, deadline=None)
@pytest.mark.slow
def test_a_damaged_delta_is_refused_or_gives_a_file_of_the_right_size(cut: float, flips: list[tuple[int, int]]) -> None:
    """The caller compares the result with the full file's hash, so a wrong file of the right size is enough."""
    rng = np.random.default_rng(2)
    base = rng.integers(0, 1 << 16, 70_000, dtype=np.uint16)
    new = np.where(rng.random(70_000) < 0.2, base ^ 9, base)
    delta = bytearray(made(base.tobytes(), new.tobytes(), 2))
    for at, bits in flips:
        delta[at % len(delta)] ^= bits
    try:
        found = applied(bytes(delta), base.tobytes(), new.nbytes)
    except DeltaUnusable:
        return
    assert len(found) == new.nbytes
    with pytest.raises(DeltaUnusable):
        applied(bytes(delta[: int(cut * len(delta))]), base.tobytes(), new.nbytes)


@pytest.mark.parametrize(
    "block",
    [
        b"\x01" + (3).to_bytes(4, "little") + bytes([200, 200, 200]) + bytes(6),  # beyond the end
        b"\x02" + (1).to_bytes(4, "little") + (500).to_bytes(2, "little") + bytes(2),
        b"\x01" + (0xFFFFFFFF).to_bytes(4, "little"),  # more words than there are: refused before anything is read
        b"\x03" + (1).to_bytes(4, "little") + bytes([255] * 63) + bytes(2),  # more bits than words
        b"\x00" + bytes(4),
        b"\x09" + bytes(4),
        b"",
    ],
)
def test_a_hostile_block_is_refused(block: bytes) -> None:
    with pytest.raises(DeltaUnusable):
        apply_block(io.BytesIO(block), np.zeros(500, np.uint16))


@pytest.mark.parametrize("word", [3, 8, 255])
def test_a_hostile_head_is_refused(word: int) -> None:
    with pytest.raises(DeltaUnusable, match="words of"):
        applied(bytes([word]) + (48).to_bytes(8, "little") + bytes(99), bytes(48), 48)
    with pytest.raises(DeltaUnusable, match="the file has 48"):
        applied(made(bytes(64), bytes(64), 2), bytes(64), 48)


@pytest.mark.parametrize(
    ("dtypes", "word"),
    [(["BF16"], 2), (["F16", "BF16"], 2), (["F32"], 4), (["F32", "BF16"], 2), (["I64"], 4), (["F8_E4M3", "F32"], 1)],
)
def test_words_are_as_large_as_the_smallest_tensor_element(dtypes: list[str], word: int) -> None:
    header = json.dumps(
        {"__metadata__": {"format": "pt"}} | {f"t{i}": {"dtype": kind} for i, kind in enumerate(dtypes)}
    )
    padded = header.encode().ljust((len(header) + 7) // 8 * 8)
    data = len(padded).to_bytes(8, "little") + padded + bytes(64)
    assert word_size(io.BytesIO(data), len(data)) == word


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff" * 8 + b"{}", (2).to_bytes(8, "little") + b"[]", b"[" * 90_000])
def test_what_is_not_safetensors_is_compared_byte_by_byte(data: bytes) -> None:
    assert word_size(io.BytesIO(data), len(data)) == 1
