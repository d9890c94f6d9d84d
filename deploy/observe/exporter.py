"""The exporter of a run: queue depths, staleness and stalls as Prometheus metrics, and the list of scrape targets.

`sieve run` and `sieve broker` hold one. It probes the broker in a thread of its own, with a connection of its own, so
that an outage of Redis never blocks the launcher's loop. Towards others it is a service: it sends heartbeats and
answers /metrics, /healthz and /readyz.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from broker.errors import BrokerFull, SieveError
from broker.queue.admin_client import AdminClient
from broker.queue.heartbeat import BEATS_PER_LEASE, Heartbeat, Role
from broker.queue.state import Depths
from broker.runtime.metrics import BaseMetrics, MetricsServer
from broker.runtime.service import UNREACHABLE
from deploy.config.tree import Config
from deploy.observe.diagnosis import diagnose
from deploy.observe.snapshot import Snapshot, outage, probe
from deploy.observe.stall import STALL_KINDS, LastingStalls, Stall
from deploy.rundir.run_files import write_json

PROBE_SECONDS = 0.5
STALENESS_BUCKETS = (0, 1, 2, 4, 8, 16, 32, 64)
SERVICE_ROLES: tuple[Role, ...] = ("actor", "verifier", "learner")


class RunMetrics(Collector):
    """The metrics of one run as of the newest probe, registered in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._newest: Depths | None = None

        def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        self._depths = {
            "tickets": gauge("sieve_queue_tickets", "Groups being sampled."),
            "returned": gauge("sieve_queue_returned", "Groups waiting to be sampled again."),
            "eval_waiting": gauge("sieve_queue_eval_waiting", "Evaluation tickets waiting for an actor."),
            "ready": gauge("sieve_queue_ready", "Groups ready for the learner."),
            "leased": gauge("sieve_queue_leased", "Groups leased to the learner and not committed."),
            "queued_bytes": gauge("sieve_queue_queued_bytes", "Payload bytes in Redis."),
            "dead_letters": gauge("sieve_queue_dead_letters", "Completions given up on."),
            "version": gauge("sieve_version", "Newest published version of the weights."),
        }
        """By the field of Depths that each shows."""
        self._verify = gauge("sieve_queue_verify", "Completions waiting or being judged.", ["verifier"])
        self._services = gauge("sieve_services", "Live services.", ["service"])
        self._stalls = gauge("sieve_stalls", "Places where the run cannot move, by kind; 0 while it moves.", ["kind"])
        self.restarts = Counter(
            "sieve_restarts", "Services started again by the launcher.", ["service", "reason"], registry=registry
        )
        for kind in STALL_KINDS:
            self._stalls.labels(kind).set(0)
        registry.register(self)

    def update(self, snapshot: Snapshot, stalls: Sequence[Stall]) -> None:
        """Take over a snapshot and its stalls. Depths keep their last values while the broker cannot be asked."""
        for kind in STALL_KINDS:
            self._stalls.labels(kind).set(sum(stall.kind == kind for stall in stalls))
        depths = self._newest = snapshot.depths
        if depths is None:
            return
        for field, gauge in self._depths.items():
            gauge.set(getattr(depths, field))
        for name, waiting in depths.verify.items():
            self._verify.labels(name).set(waiting)
        for role in SERVICE_ROLES:
            self._services.labels(role).set(len(snapshot.alive(role)))

    def collect(self) -> list[HistogramMetricFamily]:
        """The two staleness histograms: the distribution at the newest probe, not accumulated over time."""
        depths = self._newest
        return [
            _histogram(
                "sieve_staleness_in_flight_versions",
                "Staleness of groups being sampled (version now − version at issue).",
                depths.staleness_in_flight if depths else [],
            ),
            _histogram(
                "sieve_staleness_in_queue_versions",
                "Staleness of ready groups (version now − oldest version).",
                depths.staleness_in_queue if depths else [],
            ),
        ]


def _histogram(name: str, text: str, values: Sequence[int]) -> HistogramMetricFamily:
    buckets = [(str(float(edge)), float(sum(value <= edge for value in values))) for edge in STALENESS_BUCKETS]
    family = HistogramMetricFamily(name, text)
    family.add_metric([], [*buckets, ("+Inf", float(len(values)))], sum_value=float(sum(values)))
    return family


class Exporter:
    """A thread that probes the broker from construction to `close`.

    `snapshot` is what the newest probe found, `stalls` are the stalls that have lasted, and `metrics` holds what is
    exported.
    """

    def __init__(self, config: Config, url: str, role: Literal["launcher", "broker"]) -> None:
        self.snapshot = Snapshot(0.0)
        self.stalls: list[Stall] = []
        self._newest: list[Stall] = []
        self.registry = CollectorRegistry()
        self.metrics = RunMetrics(self.registry)
        self._config, self._url, self._role = config, url, role
        self._base = BaseMetrics(self.registry, role)
        self._base.phase.labels("watching").set(1)
        self._lasting = LastingStalls()
        self._started = queues_of_launcher(config) if role == "launcher" else frozenset()
        self._http = MetricsServer(
            self.registry,
            config.metrics.host,
            config.metrics.port,
            healthy=lambda: (True, "watching"),
            ready=self._ready,
        )
        self._host, self._began = socket.gethostname(), time.monotonic()
        self.id = f"{role}-0-{self._host[:32]}-{os.getpid()}-{secrets.token_hex(3)}"
        self._targets: list[dict[str, object]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="exporter", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send the last heartbeat, stop probing and free the port."""
        self._stop.set()
        self._thread.join(5.0)
        self._http.close()

    def _ready(self) -> tuple[bool, str]:
        snapshot, stalls = self.snapshot, self._newest
        said = "".join(f"; stalled: {stall}" for stall in stalls[:3])
        return not snapshot.error and snapshot.at > 0, f"probed {time.time() - snapshot.at:.1f} s ago{said}"

    def _watch(self) -> None:
        """Heartbeat, probe, export. An outage is exported, never fatal: the launcher decides what to do about it."""
        broker: AdminClient | None = None
        beat = 0.0
        while not self._stop.wait(PROBE_SECONDS):
            try:
                if broker is None:
                    broker = AdminClient.connect(self._config.broker, self._config.run, url=self._url)
                if time.monotonic() - beat > self._config.broker.lease_seconds / BEATS_PER_LEASE:
                    beat = time.monotonic()
                    with suppress(BrokerFull):  # the probe says so, and what can be read all the same
                        broker.heartbeat(self._heartbeat("watching"))
                self._export(probe(broker))
            except (*UNREACHABLE, SieveError) as error:
                self._export(outage(error))
        if broker is not None:
            if not self.snapshot.error:
                broker.heartbeat(self._heartbeat("stopped"))
            broker.close()

    def _heartbeat(self, phase: str) -> Heartbeat:
        return Heartbeat(
            id=self.id,
            role=self._role,
            phase=phase,
            phase_seconds=time.monotonic() - self._began,
            pid=os.getpid(),
            host=self._host,
            metrics_url=self._http.url,
        )

    def _export(self, snapshot: Snapshot) -> None:
        stalls = self._newest = diagnose(snapshot, self._started)
        self.snapshot = snapshot
        self.stalls = self._lasting.update(stalls, time.monotonic())
        self.metrics.update(snapshot, stalls)
        self._base.up.set(0 if snapshot.error else 1)
        if snapshot.depths is None:
            return
        targets = scrape_targets(snapshot.services)
        if targets != self._targets:
            self._targets = targets
            write_json(self._config.run.path / "prometheus" / "targets.json", targets)


def queues_of_launcher(config: Config) -> frozenset[str]:
    """The queues whose services `sieve run` starts by itself, as Stall.queue names them."""
    verify = {f"verify:{name}" for name, queue in config.verifier.serve.items() if queue.replicas}
    return frozenset({"run", "ready", *verify, *(["tickets"] if config.actor.replicas else [])})


def scrape_targets(services: Sequence[Heartbeat]) -> list[dict[str, object]]:
    """Where every live service answers /metrics, as Prometheus file_sd groups, one per role."""
    by_role: dict[str, list[str]] = {}
    for heartbeat in services:
        if heartbeat.metrics_url and heartbeat.phase != "stopped":
            address = heartbeat.metrics_url.removeprefix("http://").removesuffix("/metrics")
            by_role.setdefault(heartbeat.role, []).append(address)
    return [{"targets": sorted(found), "labels": {"role": role}} for role, found in sorted(by_role.items())]
