"""Deadlines that come from what an engine has shown: a multiple of the slowest it took before, within bounds."""

from __future__ import annotations

FACTOR = 10.0
"""How many times the slowest time seen is still taken for work: other prompts, more of them, a busier machine."""


class Patience:
    """The deadline of one kind of work, in seconds.

    It is FACTOR times the slowest time seen, at least `floor` and at most `ceiling`; before anything was seen it is
    `ceiling`, since the first time may include compilation.
    """

    def __init__(self, floor: float, ceiling: float) -> None:
        self._floor, self._ceiling = floor, ceiling
        self._slowest: float | None = None

    @property
    def seconds(self) -> float:
        if self._slowest is None:
            return self._ceiling
        return min(self._ceiling, max(self._floor, FACTOR * self._slowest))

    def saw(self, seconds: float) -> None:
        """Take the time that one piece of this work took."""
        self._slowest = max(self._slowest or 0.0, seconds)
