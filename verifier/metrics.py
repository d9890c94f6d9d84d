"""Prometheus metrics of the verifying service, labelled with verifier names and reason codes (small fixed sets)."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from broker.queue.state import Work
from broker.queue.wire import Verdict
from verifier.protocol import Verifier

SECONDS = (1e-5, 2e-5, 5e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
WAITS = (1e-3, 5e-3, 1e-2, 5e-2, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800)


class VerifierMetrics:
    """Verdict counts and durations; `in_hand` is called at every scrape for the completions held, by verifier."""

    def __init__(self, registry: CollectorRegistry, in_hand: Callable[[], dict[str, int]]) -> None:
        self._verdicts = Counter(
            "sieve_verdicts", "Verdicts given.", ["verifier", "outcome", "reason"], registry=registry
        )
        self._replies = Counter(
            "sieve_verdict_replies",
            "The broker's replies to verdicts: done, retry, dead, duplicate.",
            ["verifier", "reply"],
            registry=registry,
        )
        self._seconds = Histogram(
            "sieve_verdict_seconds", "Time of one verdict.", ["verifier"], buckets=SECONDS, registry=registry
        )
        self._cache = Counter(
            "sieve_verdict_cache",
            "Completions looked up in the verdict cache: hit or miss.",
            ["verifier", "result"],
            registry=registry,
        )
        self._waits = Histogram(
            "sieve_verify_queue_wait_seconds",
            "Time from entering the queue (Redis clock) to being received (this machine's clock).",
            ["verifier"],
            buckets=WAITS,
            registry=registry,
        )
        self._info = Gauge(
            "sieve_verifier_info",
            "1 for each verifier served; sandbox: how programs are confined (bubblewrap, landlock, unsafe), or empty.",
            ["verifier", "version", "sandbox"],
            registry=registry,
        )
        self._bounds = Gauge(
            "sieve_sandbox_bounds",
            "1 for each verifier that runs programs; what bounds a verdict's memory and processes (cgroup2, cgroup1, "
            "scope, rlimits) and its disk use (tmpfs, sampled).",
            ["verifier", "memory", "disk"],
            registry=registry,
        )
        registry.register(_InHand(in_hand))

    def serving(self, verifier: Verifier) -> None:
        """Record a verifier that is served; its optional `info` may name its level of confinement (`sandbox`) and the
        kernel's bounds (`memory`, `disk`)."""
        info: Mapping[str, str] = getattr(verifier, "info", {})
        self._info.labels(verifier.name, verifier.version, info.get("sandbox", "")).set(1)
        if "memory" in info:
            self._bounds.labels(verifier.name, info["memory"], info["disk"]).set(1)

    def received(self, verifier: str, entries: Iterable[str]) -> None:
        """Record queue waits; `entries` are stream ids: milliseconds at which Redis took them, a dash, a counter."""
        waits = self._waits.labels(verifier)
        now = time.time()
        for entry in entries:
            waits.observe(max(0.0, now - int(entry.partition("-")[0]) / 1000))

    def looked_up(self, verifier: str, hits: int, misses: int) -> None:
        """Record look-ups in the verdict cache; the hit rate is rate(hit) / rate(all)."""
        self._cache.labels(verifier, "hit").inc(hits)
        self._cache.labels(verifier, "miss").inc(misses)

    def judged(self, verifier: str, judged: Sequence[tuple[Work, Verdict]], replies: Sequence[str]) -> None:
        """Record verdicts that the broker has taken, with its replies."""
        seconds = self._seconds.labels(verifier)
        for _, verdict in judged:
            seconds.observe(verdict.seconds)
        for (outcome, reason), count in Tally((verdict.outcome, verdict.reason) for _, verdict in judged).items():
            self._verdicts.labels(verifier, outcome, reason).inc(count)
        for reply, count in Tally(replies).items():
            self._replies.labels(verifier, reply).inc(count)


class _InHand(Collector):
    def __init__(self, in_hand: Callable[[], dict[str, int]]) -> None:
        self._in_hand = in_hand

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily("sieve_verifier_in_hand", "Completions this process holds.", labels=["verifier"])
        for verifier, count in self._in_hand().items():
            family.add_metric([verifier], count)
        yield family
