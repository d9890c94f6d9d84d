"""The activity of a service: its phase, what it waits for and since when, and whether the broker answers."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from broker.runtime.metrics import BaseMetrics

STREAK_SECONDS = 1.0
"""Waits for the same reason in the same phase with shorter gaps than this are one wait, shown also in the gaps: a
service that looks again and again for what it waits for is waiting, whenever somebody asks."""
UNREACHABLE_PHASE = "broker unreachable"


class Shown(NamedTuple):
    """The activity as others see it; durations in seconds."""

    phase: str
    phase_seconds: float
    waiting_on: str
    """Empty while the service works."""
    waiting_seconds: float


class _Wait(NamedTuple):
    reason: str
    since: float
    until: float
    """Its end on the monotonic clock; infinite while it lasts."""


_NO_WAIT = _Wait("", 0.0, -math.inf)


class Activity:
    """Written by the service's loop and its heartbeat thread, read for heartbeats, probes and messages. Thread-safe."""

    def __init__(self, metrics: BaseMetrics) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()
        self._phase, self._began = "starting", time.monotonic()
        self._shown = self._phase
        self._away_since: float | None = None
        self._wait = _NO_WAIT
        self._moved = self._acknowledged = time.monotonic()
        metrics.phase.labels(self._phase).set(1)
        metrics.heartbeat_age.set_function(lambda: self.silent_seconds)
        metrics.loop_age.set_function(lambda: self.still_seconds)

    @property
    def phase(self) -> str:
        """The loop's own phase, also during an outage of the broker."""
        return self._phase

    @property
    def still_seconds(self) -> float:
        """Time since the loop last made progress."""
        return time.monotonic() - self._moved

    @property
    def silent_seconds(self) -> float:
        """Time since the broker last acknowledged a heartbeat, or since the start."""
        return time.monotonic() - self._acknowledged

    def moved(self) -> None:
        """Record that the loop made progress."""
        self._moved = time.monotonic()

    def set_phase(self, name: str) -> None:
        """Set the phase shown from now on. Another phase than before ends the wait that was shown."""
        with self._lock:
            self._moved = time.monotonic()
            if name != self._phase:
                self._phase, self._began, self._wait = name, self._moved, _NO_WAIT
                self._show()

    def set_reached(self, reached: bool) -> None:
        """Record whether a heartbeat arrived; an outage is shown instead of the loop's own phase."""
        with self._lock:
            if reached:
                self._acknowledged = time.monotonic()
            if reached == (self._away_since is None):
                return
            self._away_since = None if reached else time.monotonic()
            self._metrics.outages.inc(0 if reached else 1)
            self._show()

    def _show(self) -> None:
        shown = UNREACHABLE_PHASE if self._away_since is not None else self._phase
        if shown != self._shown:
            self._metrics.phase.labels(self._shown).set(0)
            self._metrics.phase.labels(shown).set(1)
            self._shown = shown

    @contextmanager
    def waiting(self, reason: str) -> Iterator[None]:
        """Context around a blocking call: shows `reason` as waited for, and counts its seconds."""
        begin = time.monotonic()
        with self._lock:
            last = self._wait
            goes_on = last.reason == reason and begin - last.until <= STREAK_SECONDS
            wait = self._wait = _Wait(reason, last.since if goes_on else begin, math.inf)
            self._moved = begin
        try:
            yield
        finally:
            end = time.monotonic()
            self._metrics.waiting.labels(reason).inc(end - begin)
            with self._lock:
                self._moved = end
                if self._wait is wait:
                    self._wait = wait._replace(until=end)

    def shown(self) -> Shown:
        """What a reader is to see at this moment."""
        now = time.monotonic()
        with self._lock:
            away = self._away_since
            phase = (self._phase, now - self._began) if away is None else (UNREACHABLE_PHASE, now - away)
            wait = self._wait if now - self._wait.until <= STREAK_SECONDS else _NO_WAIT
        return Shown(*phase, wait.reason, now - wait.since if wait.reason else 0.0)
