"""What the exporter exports of a snapshot: every series by its whole name, and the scrape targets."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from deploy.observe.diagnosis import diagnose
from deploy.observe.exporter import RunMetrics, scrape_targets
from deploy.observe.snapshot import Snapshot
from deploy.observe.stall import STALL_KINDS
from tests.deploy.observe.snapshots import ALL, NOW, depths, heartbeat


def exported(snapshot: Snapshot) -> CollectorRegistry:
    registry = CollectorRegistry()
    RunMetrics(registry).update(snapshot, diagnose(snapshot))
    return registry


def test_depths_services_and_staleness_are_exported() -> None:
    seen = depths(tickets=1, returned=2, eval_waiting=3, ready=4, leased=5, queued_bytes=6, dead_letters=7, version=8,
                  verify={"lean": 9}, staleness_in_queue=[0, 3, 3, 90])  # fmt: skip
    registry = exported(Snapshot(NOW, seen, [*ALL, heartbeat("actor"), heartbeat("actor", age=99.0)]))
    values = {
        "sieve_queue_tickets": 1,
        "sieve_queue_returned": 2,
        "sieve_queue_eval_waiting": 3,
        "sieve_queue_ready": 4,
        "sieve_queue_leased": 5,
        "sieve_queue_queued_bytes": 6,
        "sieve_queue_dead_letters": 7,
        "sieve_version": 8,
    }
    assert {name: registry.get_sample_value(name) for name in values} == values
    assert registry.get_sample_value("sieve_queue_verify", {"verifier": "lean"}) == 9
    assert registry.get_sample_value("sieve_services", {"service": "actor"}) == 2
    name = "sieve_staleness_in_queue_versions"
    assert [registry.get_sample_value(f"{name}_bucket", {"le": le}) for le in ("2.0", "4.0", "64.0", "+Inf")] == [
        1, 3, 3, 4,
    ]  # fmt: skip
    assert registry.get_sample_value("sieve_staleness_in_flight_versions_count") == 0


def test_stalls_are_counted_by_kind_and_are_0_otherwise() -> None:
    registry = exported(Snapshot(NOW, depths(verify={"lean": 1, "math": 1, "arithmetic": 1}), ALL))
    counts = {kind: registry.get_sample_value("sieve_stalls", {"kind": kind}) for kind in STALL_KINDS}
    assert counts == {kind: 2 if kind == "no_verifier" else 0 for kind in STALL_KINDS}


def test_an_outage_is_a_stall_and_keeps_the_last_depths() -> None:
    registry = CollectorRegistry()
    metrics = RunMetrics(registry)
    outage = Snapshot(NOW, error="refused; start it", cause="refused")
    for snapshot in (Snapshot(NOW, depths(ready=4), ALL), outage):
        metrics.update(snapshot, diagnose(snapshot))
    assert registry.get_sample_value("sieve_stalls", {"kind": "broker_refused"}) == 1
    assert registry.get_sample_value("sieve_queue_ready") == 4


def test_targets_are_grouped_by_role_and_leave_out_who_has_gone() -> None:
    services = [
        heartbeat("actor", name="a2", metrics_url="http://h:2/metrics"),
        heartbeat("actor", name="a1", metrics_url="http://h:1/metrics"),
        heartbeat("learner", metrics_url="http://h:3/metrics"),
        heartbeat("verifier", metrics_url="http://h:4/metrics", phase="stopped"),
        heartbeat("verifier"),
    ]
    assert scrape_targets(services) == [
        {"targets": ["h:1", "h:2"], "labels": {"role": "actor"}},
        {"targets": ["h:3"], "labels": {"role": "learner"}},
    ]
