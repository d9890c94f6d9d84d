"""The sandbox at each level that works here: what a program gets, its limits, and that nothing survives a run."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from broker.errors import EX_USAGE
from verifier.builtin.confinement import ConfinementUnavailable, SandboxSettings
from verifier.sandbox import levels, seccomp
from verifier.sandbox.folders import exceeds, remove
from verifier.sandbox.limits import Limits, MiB, SandboxTrouble, SandboxUnavailable
from verifier.sandbox.sandbox import Sandbox

SH = ["/bin/sh", "-c"]
REPOSITORY = Path(__file__).parents[3]


def sh(sandbox: Sandbox, script: str, *, stdin: bytes = b"", **limits: float) -> tuple[str, int, str]:
    outcome = sandbox.run([*SH, script], {"given": "text"}, stdin, Limits(**limits))  # type: ignore[arg-type]
    return outcome.ended, outcome.code, outcome.stdout.decode()


def alive(marker: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and marker.encode() in (entry / "cmdline").read_bytes():
                found.append(entry.name)
        except OSError:
            continue
    return found


# --- what a program gets


def test_a_program_gets_its_files_its_stdin_and_a_clean_environment(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIEVE_BROKER__URL", "redis://:secret@host")
    ended, code, text = sh(sandbox, "cat given; cat; ls; export -p", stdin=b" and input\n", processes=4)
    assert (ended, code) == ("exit", 0)
    assert text.startswith("text and input\ngiven\n")
    names = {line.split("=")[0].split()[-1] for line in text.splitlines()[2:]}
    assert names <= {"HOME", "LANG", "PATH", "PWD", "OLDPWD", "TMPDIR"}


def test_exit_codes_and_signals_are_reported(sandbox: Sandbox) -> None:
    assert sh(sandbox, "exit 3")[:2] == ("exit", 3)
    assert sh(sandbox, "kill -TERM $$")[:2] == ("signal", signal.SIGTERM)


def test_both_outputs_are_kept_apart(sandbox: Sandbox) -> None:
    outcome = sandbox.run([*SH, "echo out; echo err >&2"])
    assert (outcome.stdout, outcome.stderr, outcome.level) == (b"out\n", b"err\n", sandbox.level)


def test_a_run_leaves_no_folder(sandbox: Sandbox) -> None:
    sh(sandbox, "mkdir -p a/b; echo x > a/b/c; ln -s / link", processes=4)
    assert list(sandbox._home.iterdir()) == []


def test_a_program_that_does_not_exist_raises_or_is_exit_code_127(sandbox: Sandbox) -> None:
    try:
        outcome = sandbox.run(["/no/such/program"])
    except SandboxTrouble:
        return
    assert (outcome.code, outcome.level) == (127, "bubblewrap")  # as root, where setpriv starts it


def test_a_file_outside_the_runs_directory_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="outside"):
        sandbox.run([*SH, "true"], {"../x": "x"})


def test_a_program_answers_through_the_channel(sandbox: Sandbox) -> None:
    with sandbox.start([*SH, 'while read line <&3; do echo "got $line" >&3; done'], channel=True) as running:
        assert running.ask(b"one", 10, 100) == b"got one"
        assert running.ask(b"two", 10, 100) == b"got two"
        assert running.stop().ended == "stopped"


def test_a_question_that_is_not_answered_in_time_returns_none(sandbox: Sandbox) -> None:
    with sandbox.start([*SH, "sleep 60"], limits=Limits(processes=4), channel=True) as running:
        assert running.ask(b"?", 0.3, 100) is None
        assert running.stop().ended == "stopped"


def test_a_program_that_reads_nothing_does_not_block_a_long_question(sandbox: Sandbox) -> None:
    with sandbox.start([*SH, "sleep 60"], limits=Limits(processes=4), channel=True) as running:
        assert running.ask(b"x" * (8 * MiB), 0.3, 100) is None


# --- limits


@pytest.mark.alone
@pytest.mark.parametrize(
    ("script", "limits", "ended"),
    [
        ("while :; do :; done", {"cpu_seconds": 1, "wall_seconds": 20}, "cpu"),
        ("while :; do :; done", {"wall_seconds": 0.3}, "wall"),
        ("sleep 60", {"wall_seconds": 0.3, "processes": 4}, "wall"),
        ("while :; do echo xxxxxxxxxxxxxxxxxxxxxxxx; done", {"output_bytes": 1000}, "output"),
        ("i=0; while :; do echo x > f$i; i=$((i+1)); done", {"disk_bytes": MiB}, "disk"),
        (
            f"exec 5> f; rm f; while :; do echo {'x' * 1000} >&5; done 2>/dev/null",
            {"disk_bytes": MiB, "processes": 4},
            "disk",
        ),
    ],
)
def test_a_limit_ends_the_run_and_is_named(sandbox: Sandbox, script: str, limits: dict[str, float], ended: str) -> None:
    assert sh(sandbox, script, **limits)[0] == ended


def test_memory_is_limited_also_without_a_limit_on_address_space(sandbox: Sandbox) -> None:
    outcome = sandbox.run(
        ["/usr/bin/python3", "-I", "-S", "-c", "a = bytearray(200 << 20)\nimport time; time.sleep(20)"],
        limits=Limits(memory_bytes=64 * MiB, address_space=False),
    )
    assert outcome.ended == "memory"


def test_processes_of_a_run_are_limited_together(sandbox: Sandbox) -> None:
    script = (
        "import os, time\nn = 0\nwhile True:\n    try:\n        if os.fork() == 0: time.sleep(60)\n        n += 1\n"
        "    except OSError: break\nprint(n)"
    )
    outcome = sandbox.run(
        ["/usr/bin/python3", "-I", "-S", "-c", script], limits=Limits(processes=6, threads=0, wall_seconds=20)
    )
    assert 1 <= int(outcome.stdout) <= 12


@pytest.mark.parametrize(
    ("name", "value"),
    [("wall_seconds", 0), ("memory_bytes", 1), ("processes", 0), ("output_bytes", 0), ("open_files", 1)],
)
def test_a_limit_out_of_range_is_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} = {value}: must be between"):
        Limits(**{name: value})  # type: ignore[arg-type]


# --- nothing survives


def test_processes_that_a_program_leaves_behind_are_ended(sandbox: Sandbox) -> None:
    marker = f"6{os.getpid()}"
    script = f"(setsid sh -c '(sleep {marker} &) ; (setsid sleep {marker} &)' &) ; sleep 0.1; echo left"
    assert sh(sandbox, script, processes=20)[2] == "left\n"
    assert alive(marker) == []


def test_leaving_the_context_ends_the_program(sandbox: Sandbox) -> None:
    marker = f"7{os.getpid()}"
    with sandbox.start([*SH, f"sleep {marker} & sleep {marker}"], limits=Limits(processes=9)):
        time.sleep(0.3)
    assert alive(marker) == []


@pytest.mark.slow
def test_a_killed_service_leaves_nothing(sandbox: Sandbox) -> None:
    marker = f"8{os.getpid()}"
    code = (
        "import sys; from verifier.sandbox.limits import *; from verifier.sandbox.sandbox import *\n"
        f"s = Sandbox({sandbox.level!r}); print(s._home, flush=True)\n"
        f"script = '(setsid sleep {marker} &); sleep {marker}'\n"
        "s.run(['/bin/sh', '-c', script], limits=Limits(processes=9, wall_seconds=99))"
    )
    service = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE)
    assert service.stdout is not None
    home = Path(service.stdout.readline().decode().strip())
    assert home.is_dir()
    until = time.monotonic() + 20
    while len(alive(f"sleep\0{marker}")) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    assert len(alive(f"sleep\0{marker}")) >= 2
    service.kill()
    service.communicate()
    until = time.monotonic() + 20
    while (alive(f"sleep\0{marker}") or home.exists()) and time.monotonic() < until:
        time.sleep(0.05)
    assert alive(f"sleep\0{marker}") == []
    assert not home.exists()


def test_a_killed_spawner_is_replaced(sandbox: Sandbox) -> None:
    assert sh(sandbox, "exit 4")[1] == 4
    assert sandbox._spawner is not None
    os.kill(sandbox._spawner.pid, signal.SIGKILL)
    sandbox._spawner.wait()
    assert sh(sandbox, "exit 5")[1] == 5


@pytest.mark.slow
def test_many_threads_share_one_sandbox(sandbox: Sandbox) -> None:
    found: list[tuple[int, int]] = []

    def work(number: int) -> None:
        for turn in range(5):
            code = (7 * number + turn) % 100
            found.append((code, sh(sandbox, f"exit {code}", wall_seconds=60)[1]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 30
    assert all(wanted == got for wanted, got in found)


# --- choosing a level


def test_the_strongest_level_that_works_is_taken() -> None:
    working = []
    for level in ("bubblewrap", "landlock"):
        try:
            levels.open_sandbox(level).close()  # type: ignore[arg-type]
            working.append(level)
        except SandboxUnavailable:
            continue
    if not working:
        pytest.skip("no level works on this machine")
    with levels.open_sandbox() as found:
        assert found.level == working[0]


def test_without_a_working_level_the_error_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(levels.kernel, "landlock_abi", lambda: 0)
    with pytest.raises(SandboxUnavailable, match=r"bubblewrap: .*landlock: .*install bubblewrap.*unsafe"):
        levels.open_sandbox()
    with pytest.raises(ConfinementUnavailable, match=r"install bubblewrap") as caught:
        SandboxSettings().open()
    assert caught.value.exit_code == EX_USAGE
    with levels.open_sandbox("unsafe") as found:  # chosen only because it was asked for
        assert found.level == "unsafe"


def test_the_probe_detects_a_level_that_does_not_confine() -> None:
    with Sandbox("unsafe") as found:
        assert "could read a file outside" in levels.probe(found)


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("level", ["bubblewrap", "landlock"])
def test_the_levels_work_for_an_ordinary_user_too(level: str) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from verifier.sandbox.sandbox import Sandbox\nfrom verifier.sandbox.levels import probe\n"
        f"with Sandbox({level!r}) as s: print(probe(s) or 'confined')"
    )
    done = subprocess.run(
        ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", "/usr/bin/python3", "-B", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
    )
    if "not on PATH" in done.stdout or "Operation not permitted" in done.stdout or "Permission denied" in done.stderr:
        pytest.skip(f"{level} for an ordinary user: {done.stdout}{done.stderr}")
    assert done.stdout == "confined\n", done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the pod's filter below is written for x86-64")
def test_where_a_pod_forbids_namespaces_the_level_is_landlock() -> None:
    """Run as an ordinary user under a filter like a container runtime's: no unshare, mount or clone into namespaces."""
    code = f"""
import struct, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from verifier.sandbox import kernel, levels
from verifier.sandbox.limits import SandboxUnavailable
refuse, allow = (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)
steps = [(0x20, 0, 0, 0)]
for call in (272, 165, 155, 161, 308):
    steps += [(0x15, 0, 1, call), refuse]
steps += [(0x15, 0, 1, 435), (6, 0, 0, 0x50026)]
steps += [(0x15, 0, 3, 56), (0x20, 0, 0, 16), (0x45, 0, 1, 0x7E020000), refuse, allow]
kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
kernel.install_filter(b"".join(struct.pack("=HBBI", *step) for step in steps))
try:
    print(levels.open_sandbox("bubblewrap").level)
except SandboxUnavailable:
    print("refused")
with levels.open_sandbox() as s:
    print(s.level)
"""
    done = subprocess.run(
        ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", "/usr/bin/python3", "-B", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
    )
    if "Landlock" in done.stderr:
        pytest.skip("no Landlock here")
    assert done.stdout.split() == ["refused", "landlock"], done.stderr


# --- filter and folders


def test_every_jump_of_the_filter_stays_inside_it() -> None:
    if not seccomp.supported():
        pytest.skip("no table for this architecture")
    for own in (None, 77):
        for forks in (False, True):
            code = seccomp.program(own_pid=own, may_fork=forks)
            steps = [code[at : at + 8] for at in range(0, len(code), 8)]
            assert len(code) % 8 == 0
            assert len(steps) < 4096
            for at, step in enumerate(steps):
                if step[0] & 7 == 5:
                    assert at + 1 + max(step[2], step[3]) < len(steps)
            assert steps[-1][0] == 6


def test_a_folder_of_any_depth_is_measured_and_removed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    (top / "file").write_bytes(b"x" * 10_000)
    assert exceeds(str(top), 9_000)
    assert not exceeds(str(top), 20_000)
    before = os.getcwd()
    os.chdir(top)
    for _ in range(3000):
        os.mkdir("d")
        os.chdir("d")
    os.mkdir("closed", 0)
    os.chdir(before)
    assert exceeds(str(top), 1 << 40)
    remove(top)
    assert not top.exists()
