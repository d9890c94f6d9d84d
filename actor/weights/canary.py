"""Scoring the canary of the weights just loaded, and telling the learner what came out. Judges nothing."""

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
    """`look` after anything that may have loaded weights, whatever way they came."""

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
        """Score and report the canary of the loaded version, once per load; the mean difference if it happened now.

        A version can be here before its canary (weights that were broadcast), and an engine elsewhere can be away:
        asked again later. One that lost its weights has to show that it has them again."""
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
