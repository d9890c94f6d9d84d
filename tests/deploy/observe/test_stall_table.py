"""Every kind of stall, produced in a real Redis by the clients of the roles, and the name that each must get.

A case makes the state and says which stalls are to be found: kind, place, and words of the reason and the remedy. No
other may be named beside them: the cause is named, not its consequences.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rich.console import Console

from broker.queue.admin_client import AdminClient
from broker.queue.heartbeat import Heartbeat, Role
from broker.queue.state import Epoch, RunSpec
from broker.runtime.endpoint import connect_once
from broker.runtime.redis_program import Binary
from broker.runtime.redis_server import Server
from broker.settings import BrokerSettings, RunSettings
from deploy.config.load import load
from deploy.observe import diagnosis
from deploy.observe.diagnosis import diagnose
from deploy.observe.snapshot import probe
from deploy.observe.stall import MEANING, Stall, StallKind
from deploy.observe.status import status
from deploy.observe.status_report import StatusReport
from deploy.rundir.schema import mark_schema
from tests.broker.builders import EveryRole, begin, complete, connect, judge_all, offer_all, prompts, spec

LEASE = 1.0
WAITED = 20.0
"""Longer than the waits that are normal."""
NAMED_SECONDS = 15.0


class Scene:
    """A run whose services are played by hand."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.broker: EveryRole = connect(url, "small", lease_seconds=LEASE, verify_attempts=1)
        self.epoch: Epoch
        self.spec: RunSpec
        self._beats: dict[str, Heartbeat] = {}

    def open(self, *, published: bool = True, verifier: str = "arithmetic", **change: Any) -> None:
        self.epoch = begin(self.broker)
        self.spec = spec(**change)
        self.broker.open_run(self.epoch, self.spec, prompts(self.spec.train_prompts, verifier), [])
        if published:
            self.broker.publish(self.epoch, 0, 0, "hash")

    def beat(self, role: Role, waiting_on: str = "", *, name: str = "", **more: Any) -> None:
        """A service that lives from now on."""
        queues = ("arithmetic",) if role == "verifier" else ()
        waited = WAITED if waiting_on else 0.0
        fields = {"phase": "working", "phase_seconds": waited, "queues": queues, "waiting_seconds": waited, **more}
        heartbeat = Heartbeat(id=name or role, role=role, waiting_on=waiting_on, **fields)
        self._beats[heartbeat.id] = heartbeat
        self.broker.heartbeat(heartbeat)

    def all_wait(self, actor: str = "tickets", learner: str = "ready groups", verifier: str = "verify queue") -> None:
        """A learner, an actor and a verifier that wait."""
        self.beat("learner", learner)
        self.beat("actor", actor)
        self.beat("verifier", verifier)

    def falls_silent(self, name: str) -> None:
        """The service `name` sends no heartbeat any more, until its lease is over."""
        del self._beats[name]
        self.broker._redis.zincrby(self.broker._key("seen"), -LEASE - 0.1, name)

    def keep_alive(self) -> None:
        for heartbeat in self._beats.values():
            self.broker._redis.zadd(self.broker._key("seen"), {heartbeat.id: time.time()})


Case = Callable[[Scene], None]
Expected = list[tuple[StallKind, str, str]]
"""Kind, place, and words that the text has, separated by |."""
CASES: dict[str, tuple[Case, Expected]] = {}


def case(*expected: tuple[StallKind, str, str]) -> Callable[[Case], Case]:
    def register(make: Case) -> Case:
        CASES[make.__name__] = (make, list(expected))
        return make

    return register


# ---------------------------------------------------------------------- services


@case(("run_not_opened", "run", "start `sieve learner CONFIG`"))
def nothing_was_started(scene: Scene) -> None:
    pass


@case(("run_not_opened", "run", "start `sieve learner CONFIG`"))
def only_actors_were_started(scene: Scene) -> None:
    scene.beat("actor", "learner: the run is not opened yet")


@case(("no_version", "learner", "has been loading for 400 s"))
def a_learner_that_loads_for_long(scene: Scene) -> None:
    scene.open(published=False)
    scene.beat("learner", phase="loading", phase_seconds=400.0)
    scene.beat("actor", "learner: no version to sample from yet")


@case(("no_learner", "ready", "start `sieve learner CONFIG`|learner (pid 7 on far) sent its last heartbeat"))
def a_learner_that_was_killed(scene: Scene) -> None:
    scene.open()
    scene.all_wait()
    scene.beat("learner", pid=7, host="far")
    scene.falls_silent("learner")


@case(("learner_lease", "learner-2", "waits for the lease of learner,|takes over by itself"))
def a_standby_learner_before_the_lease_has_expired(scene: Scene) -> None:
    scene.open()
    scene.all_wait()
    scene.falls_silent("learner")
    scene.beat("learner", "the previous learner's lease", name="learner-2")


@case(("learner_slow", "learner", "has been training for 100 s|a step takes 1.0 s"))
def a_learner_that_hangs_in_a_step(scene: Scene) -> None:
    scene.open()
    scene.all_wait("admission: oldest open group at schedule.max_staleness")
    scene.beat("learner", phase="training", phase_seconds=100.0, values={"step_seconds": 1.0})


@case(("no_actor", "tickets", "start `sieve actor CONFIG`"))
def every_actor_has_gone(scene: Scene) -> None:
    scene.open()
    scene.all_wait()
    scene.beat("actor", phase="stopped")


@case(("actor_silent", "actor-2", "no heartbeat for|holds 1 tickets"))
def a_paused_actor_that_holds_a_ticket(scene: Scene) -> None:
    scene.open()
    scene.all_wait()
    scene.beat("actor", name="actor-2", index=1)
    scene.broker.take("actor-2", 1)
    scene.falls_silent("actor-2")


@case()
def an_actor_that_died_and_was_replaced(scene: Scene) -> None:
    scene.open()
    scene.beat("actor", name="actor-dead")
    scene.beat("verifier")
    scene.beat("learner")
    scene.falls_silent("actor-dead")
    scene.beat("actor")


def _trouble(kind: StallKind, remedy: str) -> None:
    @case((kind, "actor", f"version 3: it is so|{remedy}"))
    def make(scene: Scene) -> None:
        scene.open()
        scene.all_wait("weights")
        scene.beat("actor", "weights", trouble=kind, detail="version 3: it is so")

    CASES[f"an_actor_reports_{kind}"] = CASES.pop("make")


_trouble("weights_missing", "mount the learner's weights directory")
_trouble("weights_corrupt", "compare the disks and the network")
_trouble("weights_unusable", "give this actor the learner's model.path")


@case(("service_trouble", "actor", "a new kind|logs/actor.log"))
def a_service_with_a_trouble_of_a_later_release(scene: Scene) -> None:
    scene.open()
    scene.all_wait()
    scene.beat("actor", "tickets", trouble="of_tomorrow", detail="a new kind")


@case(("weights_slow", "actor", "holds 1 tickets and has waited for weights for 20 s"))
def an_actor_whose_weights_directory_hangs(scene: Scene) -> None:
    scene.open()
    scene.broker.take("actor", 1)
    scene.all_wait("weights")


@case(("no_verifier", "verify:lean", "10 completions wait|start `sieve verifier CONFIG --name lean`"))
def one_queue_without_a_verifier(scene: Scene) -> None:
    scene.open(verifier="lean", group_size=5)
    scene.all_wait("admission: oldest open group at schedule.max_staleness")
    tickets = scene.broker.take("actor", 10).tickets
    lean = [complete(ticket, idx) for ticket in tickets for idx in ticket.missing]
    scene.broker.offer("actor", lean)


@case(("verifier_silent", "verifier-2", "no heartbeat for|holds 2 completions of verify:arithmetic"))
def a_paused_verifier_that_holds_completions(scene: Scene) -> None:
    scene.open()
    scene.all_wait()
    scene.beat("verifier", name="verifier-2", index=1)
    offer_all(scene.broker, "actor", scene.broker.take("actor", 1).tickets)
    scene.broker.receive("arithmetic", "verifier-2", 2, 0.01)
    scene.falls_silent("verifier-2")


@case(("verifier_errors", "verifier", "arithmetic: every verdict is an error, the last tool|logs/verifier.log"))
def a_verifier_whose_tool_is_away(scene: Scene) -> None:
    scene.open()
    scene.all_wait()
    detail = "arithmetic: every verdict is an error, the last tool"
    scene.beat("verifier", "errors of the verifier", trouble="verifier_errors", detail=detail)


# ---------------------------------------------------------------------- work


@case(("verdict_slow", "verify:arithmetic", "verifier judges one of group|logs/verifier.log"))
def a_verdict_that_never_comes(scene: Scene) -> None:
    scene.open()
    scene.all_wait()
    offer_all(scene.broker, "actor", scene.broker.take("actor", 1).tickets)
    scene.broker.receive("arithmetic", "verifier", 1, 0.01)


@case(("verdict_slow", "verify:arithmetic", "no verifier has taken one of group"))
def a_verifier_that_takes_nothing(scene: Scene) -> None:
    scene.open()
    scene.all_wait()
    offer_all(scene.broker, "actor", scene.broker.take("actor", 1).tickets)


@case(("ticket_slow", "tickets", "has been held by actor for|1 of 2 completions arrived"))
def a_completion_that_never_ends(scene: Scene) -> None:
    scene.open()
    (ticket,) = scene.broker.take("actor", 1).tickets
    scene.broker.offer("actor", [complete(ticket, 0)])
    judge_all(scene.broker)
    scene.all_wait()
    scene.beat("actor", phase="sampling")


@case(("ticket_reissued", "tickets", "issued 4 times|1 of 2 completions arrived|now actor holds it"))
def a_ticket_that_ends_its_actors(scene: Scene) -> None:
    scene.open()
    scene.all_wait()
    for attempt in range(4):
        (ticket,) = scene.broker.take("actor", 1).tickets
        if attempt == 0:
            scene.broker.offer("actor", [complete(ticket, 0)])
            judge_all(scene.broker)
        if attempt < 3:
            scene.broker.release("actor", [ticket.group_id])


@case(("tickets_waiting", "tickets", "1 returned and 0 evaluation tickets wait, the actors wait on weights"))
def tickets_that_nobody_takes(scene: Scene) -> None:
    scene.open()
    scene.all_wait("weights")
    scene.broker.release("actor", [ticket.group_id for ticket in scene.broker.take("actor", 1).tickets])


@case(("queued_bytes", "tickets", "limit 100|raise broker.max_queued_bytes"))
def more_bytes_are_queued_than_the_limit(scene: Scene) -> None:
    scene.open(max_queued_bytes=100)
    scene.all_wait("admission: queued bytes at broker.max_queued_bytes")
    offer_all(scene.broker, "actor", scene.broker.take("actor", 1).tickets)
    judge_all(scene.broker)


@case(("staleness_bound", "tickets", "schedule.max_staleness = 0|2 groups are ready, a step takes 2"))
def a_learner_that_does_not_take_what_is_ready(scene: Scene) -> None:
    scene.open(max_staleness=0)
    scene.all_wait("admission: oldest open group at schedule.max_staleness")
    offer_all(scene.broker, "actor", scene.broker.take("actor", 4).tickets)
    judge_all(scene.broker)


@case(("all_dead_lettered", "verify", "`sieve deadletter list CONFIG` says why"))
def a_verifier_that_can_judge_nothing(scene: Scene) -> None:
    scene.open()
    scene.all_wait()
    offer_all(scene.broker, "actor", scene.broker.take("actor", 4).tickets)
    judge_all(scene.broker, outcome="error")


@case(("all_waiting", "learner", "actor-0: tickets"))
def everyone_waits_for_no_reason(scene: Scene) -> None:
    scene.open()
    scene.all_wait()


@case()
def a_run_whose_learner_trains_while_the_others_wait(scene: Scene) -> None:
    scene.open()
    scene.all_wait()
    scene.beat("learner", phase="training", phase_seconds=2.0)


@case()
def a_run_whose_completions_are_long_but_arrive(scene: Scene) -> None:
    scene.open()
    tickets = scene.broker.take("actor", 4).tickets
    scene.all_wait()
    scene.beat("actor", phase="sampling")
    time.sleep(0.5)
    scene.broker.offer("actor", [complete(tickets[0], 0)])
    judge_all(scene.broker)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ages that Redis measures need not be waited for; those that services report are long."""
    monkeypatch.setattr(diagnosis, "LONG_WAIT_SECONDS", 0.4)
    monkeypatch.setattr(diagnosis, "FIRST_TICKET_SECONDS", 0.4)


@pytest.mark.parametrize("name", CASES)
def test_a_stall_is_named_with_its_place_reason_and_remedy_and_nothing_else_is(name: str, redis_url: str) -> None:
    make, expected = CASES[name]
    scene = Scene(redis_url)
    make(scene)
    begin, found = time.monotonic(), list[Stall]()
    while time.monotonic() - begin < NAMED_SECONDS:
        scene.keep_alive()
        found = diagnose(probe(scene.broker))
        if [(stall.kind, stall.queue) for stall in found] == [(kind, place) for kind, place, _ in expected]:
            break
        assert expected, found
        time.sleep(0.1)
    assert [(stall.kind, stall.queue) for stall in found] == [(kind, place) for kind, place, _ in expected]
    for stall, (_, _, words) in zip(found, expected, strict=True):
        for word in words.split("|"):
            assert word in str(stall)
    scene.broker.close()


# ---------------------------------------------------------------------- the broker


@pytest.fixture(scope="module")
def server(server_binary: Binary, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose settings the cases change, with a run in which every service lives."""
    run = RunSettings(directory=tmp_path_factory.mktemp("stalls"))
    with Server.start(BrokerSettings(), run, server_binary) as server:
        yield server


Fault = Callable[[Server, "Redis", pytest.FixtureRequest], str]
FAULTS: dict[str, tuple[Fault, StallKind, str]] = {}


def fault(kind: StallKind, words: str) -> Callable[[Fault], Fault]:
    """Registers what brings a living run's broker out of reach: it returns the url that is asked then."""

    def register(make: Fault) -> Fault:
        FAULTS[make.__name__] = (make, kind, words)
        return make

    return register


def _peer(answer: bytes | None, request: pytest.FixtureRequest) -> str:
    """The url of something that takes connections and answers everything with `answer`; None ends them at once."""
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if answer is None:
                connection.close()
                continue
            held.append(connection)
            if answer:
                connection.recv(4096)
                connection.sendall(answer * 8)

    threading.Thread(target=serve, daemon=True).start()
    request.addfinalizer(lambda: [one.close() for one in [listener, *held]])
    return f"redis://127.0.0.1:{listener.getsockname()[1]}/0"


def _with(server: Server, user: str, password: str) -> str:
    return f"{server.url.partition('://')[0]}://{user}:{password}@{server.url.partition('@')[2]}"


@fault("broker_password", "refuses the password|correct user and password in broker.url")
def a_wrong_password(server: Server, client: Redis, request: pytest.FixtureRequest) -> str:
    return _with(server, "", "sesame")


@fault("broker_permission", "forbids this user a command|ACL SETUSER")
def a_user_without_rights(server: Server, client: Redis, request: pytest.FixtureRequest) -> str:
    client.execute_command("ACL", "SETUSER", "weak", "on", ">sesame", "~*", "+@all", "-evalsha", "-eval")
    request.addfinalizer(lambda: client.execute_command("ACL", "DELUSER", "weak"))
    return _with(server, "weak", "sesame")


@fault("broker_refused", "start the Redis there, or correct host and port in broker.url")
def a_wrong_port(server: Server, client: Redis, request: pytest.FixtureRequest) -> str:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return f"redis://127.0.0.1:{closed.getsockname()[1]}/0"


@fault("broker_host", "correct the host in broker.url")
def a_wrong_host(server: Server, client: Redis, request: pytest.FixtureRequest) -> str:
    return "redis://no-such-host.invalid:6379/0"


@fault("broker_not_redis", "is no Redis|correct host and port in broker.url")
def the_port_of_a_web_server(server: Server, client: Redis, request: pytest.FixtureRequest) -> str:
    return _peer(b"HTTP/1.1 400 Bad Request\r\n\r\n", request)


@fault("broker_silent", "stopped or overloaded")
def a_server_that_does_not_answer(server: Server, client: Redis, request: pytest.FixtureRequest) -> str:
    return _peer(b"", request)


@fault("broker_cut", "maxclients")
def a_server_that_ends_the_connections(server: Server, client: Redis, request: pytest.FixtureRequest) -> str:
    return _peer(None, request)


@fault("broker_loading", "wait until it has read its data")
def a_server_that_reads_its_data(server: Server, client: Redis, request: pytest.FixtureRequest) -> str:
    return _peer(b"-LOADING Redis is loading the dataset in memory\r\n", request)


@fault("broker_read_only", "name its master in broker.url")
def a_server_that_became_a_replica(server: Server, client: Redis, request: pytest.FixtureRequest) -> str:
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    request.addfinalizer(lambda: client.execute_command("REPLICAOF", "NO", "ONE"))
    return server.url


@fault("broker_memory", "its maxmemory is 1.0 MB|raise maxmemory")
def a_full_memory(server: Server, client: Redis, request: pytest.FixtureRequest) -> str:
    before = client.config_get("maxmemory")["maxmemory"]
    client.set("filling", "x" * 1_000_000)
    client.config_set("maxmemory", 1_000_000)
    request.addfinalizer(lambda: client.config_set("maxmemory", before))
    return server.url


@fault("broker_disk", "could not write its snapshot|free space where it keeps its data")
def a_full_disk(server: Server, client: Redis, request: pytest.FixtureRequest) -> str:
    before = {name: client.config_get(name)[name] for name in ("dir", "save")}
    gone = Path(before["dir"]) / "gone"
    gone.mkdir()
    client.config_set("dir", str(gone))
    client.config_set("save", "3600 1")
    gone.rmdir()
    client.bgsave()
    while client.info()["rdb_last_bgsave_status"] == "ok":
        time.sleep(0.02)

    def restore() -> None:
        for name, value in before.items():
            client.config_set(name, value)
        client.config_set("stop-writes-on-bgsave-error", "no")

    client.config_set("stop-writes-on-bgsave-error", "yes")
    request.addfinalizer(restore)
    return server.url


Write = Callable[[Any], Path]


@pytest.mark.parametrize("name", FAULTS)
def test_a_broker_that_cannot_be_used_is_named_and_not_the_run_that_lives_on_it(
    name: str, server: Server, tree: dict[str, Any], write: Write, request: pytest.FixtureRequest
) -> None:
    make, kind, words = FAULTS[name]
    with connect_once(server.url) as client:
        client.flushall()
        scene = Scene(server.url)
        scene.open()
        scene.all_wait()
        metrics = Path(tree["run"]["directory"]) / "small" / "metrics.jsonl"
        metrics.parent.mkdir(parents=True)
        mark_schema(metrics.parent)
        metrics.write_text(json.dumps({"step": 3, "version": 1, "time": 1.0, "seconds": 1.0}) + "\n")
        url = make(server, client, request)
        config = load(write({**tree, "broker": {"url": url, "connect_seconds": 0.5}}), environment={}, check="none")
        texts, codes = [], set[int]()
        for as_json in (False, True):
            console, begin = Console(width=300, record=True), time.monotonic()
            code = status(config, console, watch=False, as_json=as_json)
            assert time.monotonic() - begin < NAMED_SECONDS
            codes.add(code)
            texts.append(console.export_text())
        said = StatusReport.model_validate_json(texts[1])
        assert [stall.kind for stall in said.stalls] == [kind] and said.step == 3
        assert (said.state, codes) == (("unknown", {69}) if said.depths is None else ("stalled", {75}))
        assert f"broker_{said.cause}" == kind
        assert texts[0].count("stalled: ") == 1 and "sesame" not in "".join(texts)
        for word in words.split("|"):
            assert word in texts[0]
        assert not any(wrong in texts[0] for wrong in ("stopped;", "--resume", "no live", "finished"))
        request.addfinalizer(scene.broker.close)


def test_a_run_of_another_schema_is_named(redis_url: str) -> None:
    broker = AdminClient.connect(BrokerSettings(), RunSettings(name="small"), url=redis_url)
    broker._redis.set(broker._key("spec"), json.dumps({"schema": 0}))
    (stall,) = diagnose(probe(broker))
    assert (stall.kind, stall.queue) == ("run_unreadable", "broker") and "schema 0" in stall.reason
    broker.close()


def test_the_tables_have_every_kind_of_stall() -> None:
    services = {kind for _, expected in CASES.values() for kind, _, _ in expected}
    brokers = {kind for _, kind, _ in FAULTS.values()}
    assert set(MEANING) - services - brokers == {"run_unreadable", "broker_unusable"}  # above, and in test_status.py
