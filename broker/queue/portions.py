"""Splitting of long calls into portions, so that the server works on one while the next is on its way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

ITEMS = 256
"""Most items per script call or pipeline: enough to hide round trips, too few to hold up other clients."""
BYTES = 1 << 18
"""Most payload bytes per script call, except where one item has more."""


def portions(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Half-open ranges that cover items of these sizes in bytes, in order, each within ITEMS and BYTES."""
    found: list[tuple[int, int]] = []
    start = total = 0
    for at, size in enumerate(sizes):
        if at > start and (at - start == ITEMS or total + size > BYTES):
            found.append((start, at))
            start, total = at, 0
        total += size
    return [*found, (start, len(sizes))] if sizes else []


def chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """The items in order, ITEMS at a time."""
    for start in range(0, len(items), ITEMS):
        yield items[start : start + ITEMS]
