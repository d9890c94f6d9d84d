"""The activity of a service: its phase, what it waits for and since when, and whether the broker answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from broker.runtime.metrics import BaseMetrics

STREAK_SECONDS = 1.0
"""Waits for the same reason with shorter gaps than this count as one wait: its `since` stays."""
UNREACHABLE_PHASE = "broker unreachable"


class Activity:
    """Written by the service's loop and its heartbeat thread, read for heartbeats, probes and messages. Thread-safe."""

    def __init__(self, metrics: BaseMetrics) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()
        self._phase, self._waiting_on, self._since = "starting", "", time.time()
        self._shown = self._phase
        self._away_since: float | None = None
        self._streak = ("", 0.0, 0.0)  # reason, unix start, monotonic end of the last wait
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

    def set_phase(self, name: str, waiting_on: str = "") -> None:
        """Set the phase shown from now on, and what the service waits for."""
        with self._lock:
            self._moved = time.monotonic()
            if (name, waiting_on) != (self._phase, self._waiting_on):
                self._phase, self._waiting_on, self._since = name, waiting_on, time.time()
                self._show()

    def set_reached(self, reached: bool) -> None:
        """Record whether a heartbeat arrived; an outage is shown instead of the loop's own phase."""
        with self._lock:
            if reached:
                self._acknowledged = time.monotonic()
            if reached == (self._away_since is None):
                return
            self._away_since = None if reached else time.time()
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
            last, since, ended = self._streak
            if last != reason or begin - ended > STREAK_SECONDS:
                since = time.time()
            self._moved = begin
            self._waiting_on, self._since = reason, since
        try:
            yield
        finally:
            end = time.monotonic()
            self._metrics.waiting.labels(reason).inc(end - begin)
            with self._lock:
                self._moved = end
                self._streak = (reason, since, end)
                if self._waiting_on == reason:
                    self._waiting_on, self._since = "", time.time()

    def shown(self) -> tuple[str, str, float]:
        """Phase, what is waited for (empty while working), and the Unix time of the last change of either."""
        with self._lock:
            if self._away_since is not None:
                return UNREACHABLE_PHASE, self._waiting_on, self._away_since
            return self._phase, self._waiting_on, self._since
