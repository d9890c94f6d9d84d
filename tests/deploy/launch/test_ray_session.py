"""A run on this machine alone: Ray is reachable through loopback only, and its files are this user's only."""

from __future__ import annotations

import ipaddress
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import json, os, sys
from pathlib import Path
import psutil, ray
from deploy.config.load import load
from deploy.launch.ray_units import connect
from ray.util import get_node_ip_address

connect(load(Path(sys.argv[1]), check="none"))

@ray.remote
class Member:
    def address(self):
        return get_node_ip_address()

member = Member.options(num_cpus=0).remote()
print("address", ray.get(member.address.remote(), timeout=60))
own = psutil.Process()
for process in [own, *own.children(recursive=True)]:
    for listening in process.net_connections("inet"):
        if listening.status == psutil.CONN_LISTEN:
            print("listens", listening.laddr.ip, process.name())
session = Path(ray._private.worker._global_node.get_session_dir_path())
print("session", session)
print("token", os.environ["RAY_AUTH_TOKEN_PATH"], os.environ["RAY_AUTH_MODE"])
ray.shutdown()
"""


@pytest.mark.slow
def test_ray_listens_on_loopback_and_keeps_its_files_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("run: {name: x}\nmodel: {path: m}\ndata: {train: t.jsonl}\n")
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)],
        env={**environment, "HOME": str(home), "PYTHONPATH": str(ROOT)},
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said: dict[str, list[list[str]]] = {}
    for line in done.stdout.splitlines():
        word, *rest = line.split()
        said.setdefault(word, []).append(rest)
    assert said["address"] == [["127.0.0.1"]]
    assert len(said["listens"]) >= 5
    for address, *name in said["listens"]:
        ip = ipaddress.ip_address(address)
        assert ip.is_loopback or getattr(ip, "ipv4_mapped", None) == ipaddress.ip_address("127.0.0.1"), (address, name)
    session = Path(said["session"][0][0])
    private = session.parents[1].stat()
    assert stat.S_IMODE(private.st_mode) == 0o700 and private.st_uid == os.getuid()
    token, mode = said["token"][0]
    assert mode == "token" and stat.S_IMODE(Path(token).stat().st_mode) == 0o600
    assert not (home / ".ray" / "auth_token").exists()


def test_a_directory_of_that_name_which_is_none_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    from deploy.launch import ray_session

    with tempfile.TemporaryDirectory(dir="/tmp") as parent:
        monkeypatch.setattr(tempfile, "tempdir", parent)
        monkeypatch.setattr(ray_session, "LONGEST", 60)
        first = ray_session._directory()
        first.chmod(0o777)
        assert ray_session._directory() == first and stat.S_IMODE(first.stat().st_mode) == 0o700
        first.rmdir()
        first.symlink_to("/etc")
        other = ray_session._directory()
        assert other != first and other.parent == first.parent and stat.S_IMODE(other.stat().st_mode) == 0o700
