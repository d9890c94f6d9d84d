"""Scoring the canary of the loaded version, and reporting the log-probs to the learner, which compares them."""

from __future__ import annotations

import logging
import time

from actor.engine import Engine, NoAnswer
from actor.metrics import ActorMetrics
from broker.queue.wire import WireError, float32
from broker.weights.canary import Canaries, Precision, Report

LOOK_SECONDS = 0.5
"""Between two looks for a canary that is not there yet."""


class CanaryWatch:
    """Scores the canary of every version that the engine loads, however its weights arrived."""

    def __init__(
        self,
        canaries: Canaries,
        metrics: ActorMetrics,
        log: logging.Logger,
        *,
        actor: str,
        engine: str,
        precision: Precision,
    ) -> None:
        self._canaries, self._metrics, self._log = canaries, metrics, log
        self._actor, self._engine_name, self._precision = actor, engine, precision
        self._done: int | None = None
        self._unanswered: int | None = None
        self._not_before = 0.0

    def look(self, engine: Engine) -> float | None:
        """Score and report the canary of the loaded version, once per load.

        Returns the mean |Δ log π| in nats per token when the canary was scored in this call, else None. A version can
        arrive before its canary (when it was broadcast), and a remote engine can be away: both are tried again later.
        An engine that lost its weights is scored again once it has loaded them.
        """
        version, now = engine.version, time.monotonic()
        if version is None:
            self._done = None
        if version is None or version == self._done or now < self._not_before:
            return None
        try:
            canary = self._canaries.get(version)
        except WireError as error:
            self._log.warning("the canary of version %d cannot be read, so it is not scored: %s", version, error)
            self._done = version
            return None
        if canary is None:
            self._not_before = now + LOOK_SECONDS
            return None
        try:
            scores = tuple(float32(values) for values in engine.score(canary.sequences))
        except NoAnswer as error:
            if version != self._unanswered:
                self._log.warning("the canary of version %d is to be scored again: %s", version, error)
            self._unanswered, self._not_before = version, now + LOOK_SECONDS
            return None
        mean, largest = canary.difference(scores)
        self._canaries.report(
            Report(
                version=version, actor=self._actor, engine=self._engine_name, precision=self._precision, logprobs=scores
            )
        )
        self._metrics.canary.labels("mean").set(mean)
        self._metrics.canary.labels("max").set(largest)
        self._metrics.canary_seconds.observe(time.monotonic() - now)
        self._done, self._unanswered, self._not_before = version, None, 0.0
        return mean
