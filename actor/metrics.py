"""Prometheus metrics of the actor, labelled with the fixed words below."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Literal, get_args

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from broker.queue.wire import Completion
from broker.weights.store import Fetched

RATE_SECONDS = 2.0
"""Averaging window of tokens per second: long enough to smooth single polls, short enough to show a stall."""


BroadcastOutcome = Literal["received", "declined", "missed", "broken"]
"""The outcome of an invitation to a broadcast. `missed`: not a participant in time; `broken`: began and then failed."""


class Foreign(Collector):
    """vLLM's own metrics, copied from the process-wide registry; none unless vLLM runs in this process."""

    def collect(self) -> Iterator[Metric]:
        for metric in REGISTRY.collect():
            if metric.name.startswith("vllm:"):
                yield metric

    def describe(self) -> Iterator[Metric]:
        """No descriptions; without this method, registering would collect."""
        return iter(())


class ActorMetrics:
    """The actor's own metrics, on the service's registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.tokens = Counter(
            "sieve_actor_tokens", "Tokens sampled, cancelled completions included.", registry=registry
        )
        self.completions = Counter(
            "sieve_actor_completions", "Completions sampled.", ["lane", "finish"], registry=registry
        )
        self.dropped = Counter(
            "sieve_actor_tickets_dropped",
            "Tickets given up: stale (no longer held when offered) or released.",
            ["reason"],
            registry=registry,
        )
        self.failures = Counter(
            "sieve_actor_weights_failures",
            "Versions that could not be loaded: missing, corrupt (checksum) or unusable (do not fit the model).",
            ["reason"],
            registry=registry,
        )
        self.rate = Gauge("sieve_actor_tokens_per_second", "Sampling speed, last seconds.", registry=registry)
        self.version = Gauge("sieve_actor_version", "Version of the weights loaded.", registry=registry)
        self.occupancy = Gauge(
            "sieve_actor_batch_occupancy_ratio", "Share of actor.max_batch in use.", registry=registry
        )
        self.in_flight = Gauge("sieve_actor_in_flight", "Completions submitted and not ended.", registry=registry)
        self.staleness = Gauge(
            "sieve_actor_staleness_in_flight",
            "Newest published version − oldest version among running completions.",
            registry=registry,
        )
        self.update = Histogram(
            "sieve_actor_update_seconds",
            "Seconds by part of loading a version: while sampling goes on, fetch (read or copy), verify (hash) and "
            "check (do the tensors fit; vllm only); then load (tensors) and pause (no token sampled). In a broadcast, "
            "join (connect) and receive replace the first two.",
            ["part"],
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
            registry=registry,
        )
        self.weights_bytes = Counter(
            "sieve_actor_weights_bytes",
            "Bytes of weights in weights.cache by origin: copied, kept (from an interrupted copy), delta.",
            ["source"],
            registry=registry,
        )
        self.fallbacks = Counter(
            "sieve_actor_weights_delta_fallbacks",
            "Versions copied in full although they have a delta: base (not held here) or damaged.",
            ["reason"],
            registry=registry,
        )
        for source in ("copied", "kept", "delta"):
            self.weights_bytes.labels(source)
        for reason in ("base", "damaged"):
            self.fallbacks.labels(reason)
        registry.register(Foreign())
        self.canary = Gauge(
            "sieve_actor_canary_mismatch_nats",
            "|log π(learner) − log π(this engine)| per token, on the canary of the version loaded last.",
            ["statistic"],
            registry=registry,
        )
        self.canary_seconds = Histogram(
            "sieve_actor_canary_seconds",
            "Seconds to score the canary of a version.",
            buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
            registry=registry,
        )
        self.transfers = Counter(
            "sieve_actor_transfers",
            "Broadcasts that this actor was invited to: received, declined (an evaluation needs older weights), missed "
            "(not a participant in time) or broken (began and then failed); all but the first are read from files.",
            ["outcome"],
            registry=registry,
        )
        for outcome in get_args(BroadcastOutcome):
            self.transfers.labels(outcome)
        for lane in ("train", "eval"):
            for finish in ("stop", "length"):
                self.completions.labels(lane, finish)
        for reason in ("stale", "released"):
            self.dropped.labels(reason)
        for reason in ("missing", "corrupt", "unusable"):
            self.failures.labels(reason)
        self.tokens_per_second = 0.0
        self._since, self._at_since, self._total = time.monotonic(), 0, 0

    def fetched(self, fetched: Fetched) -> None:
        """Record a version that was fetched and loaded."""
        for part, seconds in fetched.seconds.items():
            self.update.labels(part).observe(seconds)
        for source, count in fetched.bytes.items():
            self.weights_bytes.labels(source).inc(count)
        if fetched.fallback is not None:
            self.fallbacks.labels(fetched.fallback).inc()

    def sampled(self, total: int, completions: Iterable[Completion]) -> None:
        """Record progress: `total` tokens since the start, and `completions` that just ended."""
        self.tokens.inc(total - self._total)
        self._total = total
        now = time.monotonic()
        if now - self._since >= RATE_SECONDS:
            self.tokens_per_second = (total - self._at_since) / (now - self._since)
            self.rate.set(self.tokens_per_second)
            self._since, self._at_since = now, total
        for completion in completions:
            self.completions.labels(completion.lane, completion.finish).inc()
