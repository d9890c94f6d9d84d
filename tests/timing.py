"""Measurements that hold on a machine with other work."""

from __future__ import annotations

from collections.abc import Callable


def least(measure: Callable[[], float], bound: float, tries: int = 3) -> float:
    """The least of up to `tries` measurements, ending with the first that is below `bound`.

    Other work on the machine takes caches and shared cores: it adds to the CPU seconds of the code under test and never
    takes from them, so the least is the nearest to the code's own.
    """
    found = measure()
    for _ in range(tries - 1):
        if found < bound:
            break
        found = min(found, measure())
    return found
