"""The measuring method of the benchmarks: variants take turns, and a result is the median of the rounds' ratios.

On a noisy machine, what slows one side of a round also slows the other side of the same round, so the ratios of rounds
vary less than the times. The first round warms up both sides and does not count.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table: `ratio` is ours to bare, `aim` its required value (`≥ 0.60`) or empty."""

    what: str
    ours: float
    bare: float
    unit: str
    ratio: float
    aim: str
    rounds: tuple[float, ...]
    """The ratio of each counted round."""

    @property
    def met(self) -> bool | None:
        """Whether the ratio meets its aim; None without one."""
        if not self.aim:
            return None
        sign, limit = self.aim.split()
        return self.ratio >= float(limit) if sign == "≥" else self.ratio <= float(limit)


def alternate(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The values (rates or seconds) of each side in `rounds` rounds after a warm-up; the order changes every round."""
    seen: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds + 1):
        for name in names if number % 2 else reversed(names):
            value = sides[name]()
            if number:
                seen[name].append(value)
    return seen


def row(what: str, ours: Sequence[float], bare: Sequence[float], unit: str, aim: str) -> Row:
    """The line of the table for values of the same rounds."""
    ratios = tuple(mine / other for mine, other in zip(ours, bare, strict=True))
    return Row(what, statistics.median(ours), statistics.median(bare), unit, statistics.median(ratios), aim, ratios)
