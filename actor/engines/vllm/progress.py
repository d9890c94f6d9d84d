"""Tokens sampled, requests running and the time between tokens, from the statistics that vLLM logs at every step."""

from __future__ import annotations

import threading
import time
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

from actor.engines.vllm.patience import Patience

STALL_SECONDS = (60.0, 900.0)
"""Bounds of the time without a token, with requests in flight, after which the engine is taken to hang."""


class Progress:
    """Tokens sampled and requests running, as vLLM counts them, over all engine cores of an actor; and a clock of the
    time since the last token, which runs from `start` to `stop`."""

    def __init__(self) -> None:
        self.tokens = 0
        self.patience = Patience(*STALL_SECONDS)
        self._running: dict[int, int] = {}
        self._lock = threading.Lock()  # steps are recorded on the loop's thread
        self._moved: float | None = None

    @property
    def running(self) -> int:
        return sum(self._running.values())

    @property
    def silent(self) -> float:
        """Seconds since the last token, or since `start` if that was later; 0 while the clock is stopped."""
        with self._lock:
            return 0.0 if self._moved is None else time.monotonic() - self._moved

    def start(self) -> None:
        """There are requests in flight; nothing happens if the clock runs already."""
        with self._lock:
            if self._moved is None:
                self._moved = time.monotonic()

    def stop(self) -> None:
        """Nothing is in flight, or generation is paused."""
        with self._lock:
            self._moved = None

    def of(self, config: Any, engine: int = 0) -> StatLoggerBase:
        """The logger of one engine core; vLLM calls this at its start."""
        progress = self

        class Logger(StatLoggerBase):  # type: ignore[misc]
            def __init__(self) -> None:
                """Nothing to set up."""

            def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx=0) -> None:  # type: ignore[no-untyped-def]  # vLLM documents these types as unstable
                if scheduler_stats is not None:
                    progress._running[engine] = scheduler_stats.num_running_reqs
                if iteration_stats is not None and iteration_stats.num_generation_tokens:
                    progress._sampled(iteration_stats.num_generation_tokens)

            def log_engine_initialized(self) -> None:
                """Nothing to log; the service logs its own start."""

        return Logger()

    def _sampled(self, tokens: int) -> None:
        now = time.monotonic()
        with self._lock:
            self.tokens += tokens
            if self._moved is not None:
                self.patience.saw(now - self._moved)
                self._moved = now
