"""The counts of sampled tokens and running requests, read from the statistics that vLLM logs at every step."""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase


class Progress:
    """Tokens sampled and requests running, as vLLM counts them, over all engine cores of an actor."""

    def __init__(self) -> None:
        self.tokens = 0
        self._running: dict[int, int] = {}

    @property
    def running(self) -> int:
        return sum(self._running.values())

    def of(self, config: Any, engine: int = 0) -> StatLoggerBase:
        """The logger of one engine core; vLLM calls this at its start."""
        progress = self

        class Logger(StatLoggerBase):  # type: ignore[misc]
            def __init__(self) -> None:
                """Nothing to set up."""

            def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx=0) -> None:  # type: ignore[no-untyped-def]  # vLLM documents these types as unstable
                if scheduler_stats is not None:
                    progress._running[engine] = scheduler_stats.num_running_reqs
                if iteration_stats is not None:
                    progress.tokens += iteration_stats.num_generation_tokens

            def log_engine_initialized(self) -> None:
                """Nothing to log; the service logs its own start."""

        return Logger()
