"""The life of a service, on a real Redis and in real processes: start, outage, stop, failure, and what it exports."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker.errors import BrokerFull, RunConflict
from broker.queue.connection import RunConnection
from broker.queue.heartbeat import Heartbeat
from broker.runtime.redis_server import Server
from broker.runtime.service import Service
from broker.settings import BrokerSettings, MetricsSettings, RunSettings

REPOSITORY = Path(__file__).parents[3]


@dataclass(frozen=True)
class Config:
    run: RunSettings
    broker: BrokerSettings = field(default_factory=lambda: BrokerSettings(lease_seconds=1, connect_seconds=5))
    metrics: MetricsSettings = field(default_factory=MetricsSettings)


class Counting(Service[RunConnection]):
    """Counts its steps; `during` runs inside each."""

    role = "actor"
    client = RunConnection

    def __init__(self, config: Config, during: Callable[[Counting], None] = lambda self: None, **more: object) -> None:
        super().__init__(config, **more)  # type: ignore[arg-type]
        self.steps = self.drained = 0
        self.during = during

    def setup(self) -> None:
        self.values["version"] = 3.0

    def step(self) -> None:
        self.phase("counting")
        self.during(self)
        self.steps += 1
        self.wait("the next number", 0.01)

    def drain(self) -> None:
        self.drained += 1


PROGRAM = """
import sys, time
from pathlib import Path
sys.path.insert(0, str(Path.cwd()))
from tests.broker.runtime.test_service import Config, Counting
from broker.settings import BrokerSettings, RunSettings
directory, url, connect_seconds, body, drain = sys.argv[1:]
broker = BrokerSettings(connect_seconds=float(connect_seconds), lease_seconds=1)
config = Config(RunSettings(directory=Path(directory)), broker)
class Program(Counting):
    grace_seconds = 2.0
    def step(self):
        exec(body)
        super().step()
        if self.steps == 1: print(self.metrics_url, flush=True)
    def drain(self):
        exec(drain)
        print("drained", flush=True)
sys.exit(Program(config, url=url or None).run())
"""


def program(
    directory: Path, url: str, *, body: str = "", drain: str = "", connect_seconds: float = 5
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(directory), url, str(connect_seconds), body, drain],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
    )  # fmt: skip


def until(condition: Callable[[], object], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples(url: str) -> dict[tuple[str, str], float]:
    """Metric name and its only label's value (or '') to the sample."""
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(get(url)[1])
        for sample in family.samples
    }


@contextlib.contextmanager
def running(service: Service) -> Iterator[list[int]]:
    """Run it in a thread, as a Ray actor does; yields the list that will hold the exit code."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(service.run()))
    thread.start()
    try:
        yield codes
    finally:
        service.request_stop("end of test")
        thread.join(20)
        assert not thread.is_alive()


def seen(url: str, config: Config) -> dict[str, Heartbeat]:
    broker = RunConnection.connect(config.broker, config.run, url=url)
    try:
        return {heartbeat.id: heartbeat for heartbeat in broker.services()}
    finally:
        broker.close()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(RunSettings(directory=tmp_path))


# --- start and stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.slow
def test_a_signal_drains_and_exits_0(tmp_path: Path, redis_url: str, number: signal.Signals) -> None:
    process = program(tmp_path, redis_url)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert out == "drained\n"
    assert f"stopping: {number.name}" in err


@pytest.mark.alone
def test_a_drain_longer_than_the_grace_period_ends_with_75(tmp_path: Path, redis_url: str) -> None:
    process = program(tmp_path, redis_url, drain="time.sleep(60)")
    assert process.stdout is not None
    process.stdout.readline()
    begin = time.monotonic()
    process.terminate()
    _, err = process.communicate(timeout=20)
    assert process.returncode == 75
    assert 1.5 < time.monotonic() - begin < 6
    assert "not drained within 2 s while actor-0-" in err
    assert "draining" in err


@pytest.mark.alone
def test_a_second_signal_ends_at_once_with_75(tmp_path: Path, redis_url: str) -> None:
    process = program(tmp_path, redis_url, drain="print('in drain', flush=True); time.sleep(60)")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "in drain\n"
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 75
    assert time.monotonic() - begin < 1.5
    assert "second signal" in err


def test_in_a_thread_it_leaves_signals_alone_and_stops_when_asked(config: Config, redis_url: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    service = Counting(config, url=redis_url)
    with running(service) as codes:
        assert until(lambda: service.steps > 3)
        assert signal.getsignal(signal.SIGTERM) is before
        service.request_stop()
        assert until(lambda: codes)
    assert codes == [0]
    assert service.drained == 1


def test_finish_drains_and_exits_0(config: Config, redis_url: str) -> None:
    service = Counting(config, lambda self: self.finish("the run is over") if self.steps == 5 else None, url=redis_url)
    assert service.run() == 0
    assert (service.steps, service.drained) == (6, 1)


@pytest.mark.alone
def test_a_stop_while_connecting_is_heeded_at_once(tmp_path: Path) -> None:
    config = Config(RunSettings(directory=tmp_path), BrokerSettings(connect_seconds=60))
    service = Counting(config)
    with running(service) as codes:
        assert until(lambda: service.heartbeat().waiting_on == "broker")
        begin = time.monotonic()
        service.request_stop()
        assert until(lambda: codes)
        assert time.monotonic() - begin < 3
    assert codes == [0]
    assert service.drained == 0


def test_it_can_be_started_before_the_broker(config: Config) -> None:
    service = Counting(config)
    with running(service) as codes:
        time.sleep(0.5)
        with Server.start(config.broker, config.run):
            assert until(lambda: service.steps > 3)
            service.request_stop()
            assert until(lambda: codes)
    assert codes == [0]


# --- failures


@pytest.mark.alone
@pytest.mark.parametrize("url", ["", "redis://:sesame@127.0.0.1:1/0", "unix://:sesame@/nowhere/redis.sock"])
def test_an_unreachable_redis_ends_with_69_within_the_deadline_and_names_the_remedy(tmp_path: Path, url: str) -> None:
    begin = time.monotonic()
    process = program(tmp_path, url, connect_seconds=2)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 69
    assert 2 <= time.monotonic() - begin < 8  # imports included
    errors = [line for line in err.splitlines() if " ERROR " in line]
    assert len(errors) == 1
    assert "broker.connect_seconds = 2 s" in errors[0]
    assert "start sieve broker CONFIG" in errors[0]
    assert "broker.url" in errors[0]
    assert "Traceback" not in err
    assert "sesame" not in err


@pytest.mark.alone
def test_a_wrong_password_is_not_waited_for(tmp_path: Path, redis_url: str) -> None:
    scheme, _, rest = redis_url.partition("://")
    config = Config(RunSettings(directory=tmp_path), BrokerSettings(connect_seconds=60))
    begin = time.monotonic()
    assert Counting(config, url=f"{scheme}://:wrong@{rest.split('@')[1]}").run() == 69
    assert time.monotonic() - begin < 5


@pytest.mark.slow
def test_an_unknown_exception_is_one_line_on_the_terminal_and_a_traceback_in_the_log(
    tmp_path: Path, redis_url: str
) -> None:
    process = program(tmp_path, redis_url, body="{}['no such key']")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 70
    errors = [line for line in err.splitlines() if " ERROR " in line]
    assert len(errors) == 1
    assert "unexpected KeyError: 'no such key'" in errors[0]
    assert "Traceback" not in err
    (log,) = (tmp_path / "run" / "logs").glob("actor-0-*.log")
    assert "Traceback (most recent call last)" in log.read_text()


def raise_(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (RunConflict("run 'x' was opened with seed 1, now 2; choose another run.name"), 65, "choose another run.name"),
        (OSError(28, "No space left on device", "/data/weights"), 75, "/data/weights: No space left on device; free"),
    ],
)
def test_a_named_error_ends_with_its_own_code(
    config: Config, redis_url: str, capfd: pytest.CaptureFixture[str], error: Exception, code: int, says: str
) -> None:
    assert Counting(config, lambda self: raise_(error), url=redis_url).run() == code
    assert says in capfd.readouterr().err


def test_a_full_redis_is_waited_for(config: Config, redis_url: str) -> None:
    def full_at_first(self: Counting) -> None:
        if self.steps == 0 and self.registry.get_sample_value(
            "sieve_waiting_seconds_total", {"reason": "room in the broker"}
        ) is None:  # fmt: skip
            raise BrokerFull("Redis is at its memory limit")
        self.finish("done")

    assert Counting(config, full_at_first, url=redis_url).run() == 0


def test_a_taken_metrics_port_is_named(tmp_path: Path, redis_url: str, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = Config(RunSettings(directory=tmp_path), metrics=MetricsSettings(port=port))
        assert Counting(config, url=redis_url).run() == 69
    assert f"cannot listen on 127.0.0.1:{port}" in capfd.readouterr().err


def test_an_unwritable_run_directory_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").write_text("a file where the directory should be")
    assert Counting(Config(RunSettings(directory=tmp_path))).run() == 73
    assert "set run.directory to a folder that can be written" in capfd.readouterr().err


@pytest.mark.slow
def test_the_password_is_in_no_log(tmp_path: Path, redis_url: str) -> None:
    password = redis_url.split("@")[0].rpartition(":")[2]
    body = f"self.log.info('connected to %s', {redis_url!r}); raise ValueError({redis_url!r})"
    process = program(tmp_path, redis_url, body=body)
    out, err = process.communicate(timeout=20)
    (log,) = (tmp_path / "run" / "logs").glob("*.log")
    assert "connected to" in err
    assert "ValueError" in log.read_text()
    for text in (out, err, log.read_text()):
        assert password not in text.replace(body, "")


# --- outages


def test_a_brief_outage_is_named_and_survived(config: Config) -> None:
    with Server.start(config.broker, config.run) as server:
        service = Counting(config, lambda self: self.broker.services() and None)
        with running(service) as codes:
            assert until(lambda: service.steps > 3)
            os.kill(server.pid, signal.SIGKILL)
            assert until(lambda: service.heartbeat().phase == "broker unreachable", 3)
            measured = samples(service.metrics_url)
            assert measured["sieve_phase", "broker unreachable"] == 1
            assert measured["sieve_phase", "counting"] == 0
            assert "broker unreachable" in get(service.metrics_url.replace("/metrics", "/healthz"))[1]
            assert until(lambda: get(service.metrics_url.replace("/metrics", "/readyz"))[0] == 503, 3)
            assert server.ensure()
            assert until(lambda: service.heartbeat().phase == "counting", 5)
            steps = service.steps
            assert until(lambda: service.steps > steps + 3)
            assert until(lambda: service.id in seen(server.url, config))
            assert samples(service.metrics_url)["sieve_broker_outages_total", ""] == 1
            service.request_stop()
            assert until(lambda: codes)
    assert codes == [0]
    assert service.drained == 1


@pytest.mark.alone
@pytest.mark.parametrize("asks", [True, False], ids=["asking the broker", "working without it"])
def test_a_long_outage_ends_with_69_within_its_deadline(tmp_path: Path, asks: bool) -> None:
    settings = BrokerSettings(lease_seconds=1, connect_seconds=2)
    config = Config(RunSettings(directory=tmp_path), settings)
    server = Server.start(settings, config.run)
    service = Counting(config, lambda self: self.broker.services() and None if asks else None)
    with running(service) as codes:
        assert until(lambda: service.steps > 3)
        server.stop()
        begin = time.monotonic()
        assert until(lambda: codes, 15)
        assert 1.5 < time.monotonic() - begin < 6
    assert codes == [69]
    assert service.drained == 0


# --- what others see


def test_the_heartbeat_tells_who_and_what_and_the_last_one_that_it_left(config: Config, redis_url: str) -> None:
    service = Counting(config, url=redis_url, index=4)
    with running(service) as codes:
        assert until(lambda: seen(redis_url, config).get(service.id, service.heartbeat()).values == {"version": 3.0})
        assert until(lambda: service.id in seen(redis_url, config))
        heartbeat = seen(redis_url, config)[service.id]
        assert (heartbeat.role, heartbeat.index, heartbeat.pid) == ("actor", 4, os.getpid())
        assert heartbeat.metrics_url == service.metrics_url
        assert heartbeat.age_seconds < 1
        service.request_stop()
        assert until(lambda: codes)
    last = seen(redis_url, config).get(service.id)
    assert last is None or last.phase == "stopped"


def test_a_long_step_does_not_hold_the_heartbeat_back(config: Config, redis_url: str) -> None:
    service = Counting(config, lambda self: time.sleep(2.5), url=redis_url)
    with running(service):
        assert until(lambda: service.heartbeat().phase == "counting")
        ages = []
        for _ in range(8):
            time.sleep(0.25)
            ages.append(samples(service.metrics_url)["sieve_heartbeat_age_seconds", ""])
    assert max(ages) < config.broker.lease_seconds


def test_metrics_are_valid_and_say_the_phase_and_the_waits(config: Config, redis_url: str) -> None:
    service = Counting(config, url=redis_url)
    with running(service):
        assert until(lambda: service.steps > 20)
        measured = samples(service.metrics_url)
    assert measured["sieve_up", ""] == 1
    phases = {label: value for (name, label), value in measured.items() if name == "sieve_phase"}
    assert phases["counting"] == 1
    assert sum(phases.values()) == 1
    assert measured["sieve_waiting_seconds_total", "the next number"] > 0.1
    assert measured["sieve_loop_steps_total", ""] > 15
    assert measured["sieve_process_resident_memory_bytes", ""] > 1e6
    assert all(name.startswith("sieve_") for name, _ in measured)


def test_openmetrics_is_spoken_when_asked_for(config: Config, redis_url: str) -> None:
    service = Counting(config, url=redis_url)
    with running(service):
        assert until(lambda: service.steps > 0)
        request = urllib.request.Request(service.metrics_url, headers={"Accept": "application/openmetrics-text"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
            assert answer.read().endswith(b"# EOF\n")
        assert get(service.metrics_url.replace("/metrics", "/elsewhere"))[0] == 404


def test_it_is_healthy_while_it_moves_and_ready_when_it_is_set_up(config: Config, redis_url: str) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(Counting):
        def setup(self) -> None:
            entered.set()
            leave.wait(20)

    service = Slow(config, url=redis_url)
    with running(service):
        assert entered.wait(10)
        healthz, readyz = (service.metrics_url.replace("/metrics", path) for path in ("/healthz", "/readyz"))
        assert get(healthz)[0] == 200
        status, why = get(readyz)
        assert status == 503
        assert "setting up" in why
        service.stall_seconds = 0.1
        time.sleep(0.3)
        assert get(healthz)[0] == 503
        service.stall_seconds = 900
        leave.set()
        assert until(lambda: service.steps > 0)
        assert (get(healthz)[0], get(readyz)[0]) == (200, 200)


def test_repeated_short_waits_for_one_thing_are_one_wait_to_a_reader_whenever_it_looks(config: Config) -> None:
    service = Counting(config)
    service.phase("waiting")
    for _ in range(3):
        with service.waiting("tickets"):
            assert service.heartbeat().waiting_on == "tickets"
            time.sleep(0.05)
        assert service.heartbeat().waiting_on == "tickets"  # it looks for them, and will wait again
    assert service.heartbeat().waiting_seconds >= 0.15
    with service.waiting("weights"):
        assert service.heartbeat().waiting_on == "weights" and service.heartbeat().waiting_seconds < 0.05
    service.phase("sampling")
    assert service.heartbeat().waiting_on == "" and service.heartbeat().waiting_seconds == 0
    with service.waiting("weights"):
        assert service.heartbeat().waiting_seconds < 0.05 and service.heartbeat().phase_seconds < 0.05


def test_a_service_in_trouble_is_not_ready_and_says_why(config: Config, redis_url: str) -> None:
    service = Counting(config, url=redis_url)
    with running(service):
        assert until(lambda: service.steps > 0)
        readyz = service.metrics_url.replace("/metrics", "/readyz")
        assert get(readyz)[0] == 200
        service.trouble("weights_missing", "version 3: no such directory")
        status, why = get(readyz)
        assert status == 503 and "weights_missing: version 3: no such directory" in why
        assert samples(service.metrics_url)["sieve_up", ""] == 0
        service.trouble()
        assert get(readyz)[0] == 200
