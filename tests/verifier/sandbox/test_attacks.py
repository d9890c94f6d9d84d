"""Attacks on the kernel's bounds, at each level, as this user and as an ordinary one, with and without namespaces."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.verifier.sandbox.attacks import ATTACKS, PYTHON, disguised
from verifier.sandbox import levels
from verifier.sandbox.limits import GROUPED
from verifier.sandbox.sandbox import Sandbox

ATTACK = Path(__file__).with_name("attacks.py")


@pytest.mark.parametrize(
    "attack",
    [pytest.param(a, id=a.__name__, marks=[pytest.mark.slow] if a is disguised else []) for a in ATTACKS],
)
def test_the_kernel_bounds_what_a_program_takes(sandbox: Sandbox, attack) -> None:
    attack(sandbox)


def test_no_group_and_no_folder_outlives_a_sandbox() -> None:
    with levels.open_sandbox() as sandbox:
        name = sandbox._home.name
        grouped = sandbox.bounds.memory in GROUPED
        groups = subprocess.run(["find", "/sys/fs/cgroup", "-name", name], capture_output=True, text=True).stdout
        assert bool(groups) == grouped
    left = subprocess.run(["find", "/sys/fs/cgroup", "-name", name], capture_output=True, text=True).stdout
    assert left == ""
    assert not sandbox._home.exists()


def test_what_killed_processes_left_behind_is_removed_at_the_next_start(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys\n"
        "from verifier.sandbox.sandbox import Sandbox\n"
        "sandbox = Sandbox('unsafe', directory=pathlib.Path(sys.argv[1]))\n"
        "print(sandbox._home.name, sandbox.bounds.memory, sandbox._spawner.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )

    def next_start() -> set[str]:
        with Sandbox("unsafe", directory=tmp_path) as sandbox:
            assert sandbox.bounds
            places = [str(tmp_path), "/sys/fs/cgroup"]
            return set(subprocess.run(["find", *places, "-name", name], capture_output=True, text=True).stdout.split())

    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as service:
        assert service.stdout is not None
        name, memory, spawner = service.stdout.readline().split()
        assert len(next_start()) > (memory in GROUPED)  # its owners live
        os.kill(int(spawner), signal.SIGKILL)
        service.kill()
    until = time.monotonic() + 10.0
    while next_start():  # the spawner is nobody's child here: when it has ended cannot be waited for
        assert time.monotonic() < until


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    ("arguments", "bounds"),
    [
        (["bubblewrap"], "bubblewrap, rlimits, tmpfs"),
        (["landlock"], "landlock, rlimits, tmpfs"),
        (["landlock", "pod"], "landlock, rlimits, sampled"),
    ],
)
def test_an_ordinary_user_without_control_groups_is_protected_too(arguments: list[str], bounds: str) -> None:
    if "pod" in arguments and platform.machine() != "x86_64":
        pytest.skip("the pod's filter is written for x86-64")
    if "bubblewrap" in arguments and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    become = ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups"]
    done = subprocess.run(
        [*become, PYTHON, "-B", str(ATTACK), *arguments], capture_output=True, text=True, timeout=300, cwd="/"
    )
    if not done.stdout and ("cannot be confined here" in done.stderr or "Permission denied" in done.stderr):
        pytest.skip(f"{arguments}: {done.stderr[-300:]}")
    assert done.stdout.splitlines() == [f"user 12345, {bounds}", *(attack.__name__ for attack in ATTACKS)], done.stderr
