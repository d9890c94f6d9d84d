"""Watches a run from outside its services: the newest Snapshot, queue depths as Prometheus gauges, and the scrape
targets.

One thread with its own broker connection, so that an outage of Redis never stalls the launcher's loop. Held by `sieve
run` and `sieve broker`; it heartbeats like a service and answers /metrics like one.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from broker.errors import SieveError
from broker.queue.client import Broker
from broker.queue.heartbeat import Heartbeat
from broker.runtime.metrics import BaseMetrics, MetricsServer
from broker.runtime.service import UNREACHABLE, explain
from deploy.config.tree import Config
from deploy.observe.snapshot import Snapshot, look
from deploy.rundir.run_files import write_json

LOOK_SECONDS = 0.5
STALENESS_EDGES = (0, 1, 2, 4, 8, 16, 32, 64)


class Depths(Collector):
    """Queue depths and the staleness of what is on its way, as of the newest look."""

    def __init__(self) -> None:
        self.snapshot = Snapshot(0.0)

    def collect(self) -> list[HistogramMetricFamily]:
        """The two staleness histograms: a fresh distribution each time, not an accumulation."""
        d = self.snapshot.depths
        families = []
        for name, values, what in (
            ("in_flight", d.staleness_in_flight if d else [], "groups being sampled (version now − version at issue)"),
            ("in_queue", d.staleness_in_queue if d else [], "ready groups (version now − oldest version)"),
        ):
            family = HistogramMetricFamily(f"sieve_staleness_{name}_versions", f"Staleness of {what}.")
            buckets = [(str(float(edge)), float(sum(v <= edge for v in values))) for edge in STALENESS_EDGES]
            family.add_metric([], [*buckets, ("+Inf", float(len(values)))], sum_value=float(sum(values)))
            families.append(family)
        return families


class Exporter:
    """Starts looking when made; `snapshot` is the newest look. `restarted` counts what the launcher had to start
    again."""

    def __init__(self, config: Config, url: str, role: Literal["launcher", "broker"]) -> None:
        self.snapshot = Snapshot(0.0)
        self.registry = CollectorRegistry()
        self._config, self._url, self._role = config, url, role
        self._base = BaseMetrics(self.registry, role)
        self._base.phase.labels("watching").set(1)
        self._staleness = Depths()
        self.registry.register(self._staleness)
        gauges = {
            "tickets": "Groups being sampled.", "returned": "Groups waiting to be sampled again.",
            "eval_waiting": "Held-out tickets waiting for an actor.", "ready": "Groups ready for the learner.",
            "leased": "Groups leased to the learner and not committed.", "queued_bytes": "Payload bytes in Redis.",
            "dead_letters": "Completions given up on.", "version": "Newest published version.",
        }  # fmt: skip
        self._gauges = {
            name: Gauge("sieve_version" if name == "version" else f"sieve_queue_{name}", text, registry=self.registry)
            for name, text in gauges.items()
        }
        self._verify = Gauge(
            "sieve_queue_verify", "Completions waiting or being judged.", ["verifier"], registry=self.registry
        )
        self._services = Gauge("sieve_services", "Live services.", ["service"], registry=self.registry)
        self.restarted = Counter(
            "sieve_restarts", "Services started again by the launcher.", ["service", "reason"], registry=self.registry
        )
        self._http = MetricsServer(
            self.registry,
            config.metrics.host,
            config.metrics.port,
            healthy=lambda: (True, "watching"),
            ready=self._ready,
        )
        host = socket.gethostname()
        self.id = f"{role}-0-{host[:32]}-{os.getpid()}-{secrets.token_hex(3)}"
        self._host, self._since = host, time.time()
        self._targets: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="exporter", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Say goodbye, stop looking and free the port."""
        self._stop.set()
        self._thread.join(5.0)
        self._http.close()

    def _ready(self) -> tuple[bool, str]:
        seen = self.snapshot
        return not seen.error and seen.at > 0, seen.error or f"last look {time.time() - seen.at:.1f} s ago"

    def _watch(self) -> None:
        """Look, export, heartbeat; an outage is shown, never fatal: the launcher decides what to do about the
        server."""
        broker: Broker | None = None
        beat = 0.0
        while not self._stop.wait(LOOK_SECONDS):
            try:
                if broker is None:
                    broker = Broker.connect(self._config.broker, self._config.run, url=self._url)
                if time.monotonic() - beat > self._config.broker.lease_seconds / 4:
                    beat = time.monotonic()
                    broker.heartbeat(self._pulse("watching"))
            except (*UNREACHABLE, SieveError) as error:
                self.snapshot = Snapshot(time.time(), error=explain(error)[1])
                self._base.up.set(0)
                continue
            self.snapshot = look(broker)
            self._export(self.snapshot)
        if broker is not None:
            if not self.snapshot.error:
                broker.heartbeat(self._pulse("stopped"))
            broker.close()

    def _pulse(self, phase: str) -> Heartbeat:
        return Heartbeat(
            id=self.id, role=self._role, phase=phase, since=self._since, pid=os.getpid(), host=self._host,
            metrics_url=self._http.url,
        )  # fmt: skip

    def _export(self, seen: Snapshot) -> None:
        self._staleness.snapshot = seen
        self._base.up.set(0 if seen.error else 1)
        if seen.depths is None:
            return
        for name, gauge in self._gauges.items():
            gauge.set(getattr(seen.depths, name))
        for name, count in seen.depths.verify.items():
            self._verify.labels(name).set(count)
        for role in ("actor", "verifier", "learner"):
            self._services.labels(role).set(len(seen.alive(role)))
        targets = sorted(
            f"{heartbeat.role} {heartbeat.metrics_url}"
            for heartbeat in seen.services
            if heartbeat.metrics_url and heartbeat.phase != "stopped"
        )
        if targets != self._targets:
            self._targets = targets
            write_json(self._config.run.path / "prometheus" / "targets.json", scrape_targets(seen.services))


def scrape_targets(services: list[Heartbeat]) -> list[dict[str, object]]:
    """Prometheus file_sd groups, one per role: where every live service answers /metrics."""
    by_role: dict[str, list[str]] = {}
    for heartbeat in services:
        if heartbeat.metrics_url and heartbeat.phase != "stopped":
            by_role.setdefault(heartbeat.role, []).append(
                heartbeat.metrics_url.removeprefix("http://").removesuffix("/metrics")
            )
    return [{"targets": sorted(found), "labels": {"role": role}} for role, found in sorted(by_role.items())]
