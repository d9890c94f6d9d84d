"""The Lean back ends, the canaries and the external checker, against stand-ins that speak the documented protocols.

The stand-ins answer with findings recorded from a real Lean, and that of Kimina with what the real server said around
them; the REPL's messages follow its documentation. See exchanges/README.md.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.verifier.builtin.lean.lean_peers import EXCHANGES, Peer, kimina
from verifier.builtin.confinement import SandboxSettings
from verifier.builtin.lean import kimina as backend
from verifier.builtin.lean.doctor import check
from verifier.builtin.lean.settings import LeanSettings
from verifier.builtin.lean.verifier import Lean
from verifier.protocol import Judgement, VerifierError, make
from verifier.sandbox.limits import Limits

TRUE = {"header": "", "name": "truth", "statement": "theorem truth (a b : Nat) : a + b = b + a := by\n"}
FALSE = {"header": "", "name": "falsehood", "statement": "theorem falsehood : (1 : Nat) = 2 := by\n"}
HERE = Path(__file__).parent


READABLE = {"readable": [str(HERE.parents[3]), sys.prefix, sys.base_prefix]}


@cache
def reachable() -> str:
    """Why a confined program cannot run this interpreter; empty if it can."""
    with SandboxSettings.model_validate(READABLE).open() as sandbox:
        trial = sandbox.run([sys.executable, "-c", ""], {}, b"", Limits(memory_bytes=1 << 30))
    if trial.code != 126:
        return ""
    # Landlock runs programs as nobody, who may not pass /root.
    return f"{trial.level}: {sys.executable} is out of a confined program's reach; install bubblewrap"


def repl(*words: str, **options: Any) -> Lean:
    if reason := reachable():
        pytest.skip(reason)
    command = (sys.executable, str(HERE / "lean_peers.py"), str(EXCHANGES), *words)
    set_up = {"backend": "repl", "repl": command, "sandbox": READABLE, "seconds": 20, "start_seconds": 20}
    return Lean(**{**set_up, **options})


def told(said: Judgement) -> str:
    return f"{said.outcome}/{said.reason}"


@pytest.fixture
def server() -> Iterator[tuple[str, list[int]]]:
    with kimina(Peer(EXCHANGES), secret="the key") as found:
        yield found


@pytest.fixture(params=["repl", "kimina"])
def lean(request: pytest.FixtureRequest) -> Iterator[Lean]:
    if request.param == "repl":
        made = repl()
        yield made
        made.close()
    else:
        url, _ = request.getfixturevalue("server")
        yield Lean(backend="kimina", url=url, key="the key", seconds=20)


def repls() -> list[psutil.Process]:
    """The REPLs below this process, without what confines them."""
    mine = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.cmdline()[:1] == [sys.executable] and "lean_peers" in " ".join(child.cmdline()):
                mine.append(child)
    return mine


def test_a_proof_passes_and_a_wrong_one_fails_through_either_back_end(lean: Lean) -> None:
    assert told(lean.judge(TRUE, "  omega")) == "pass/proved"
    assert told(lean.judge(FALSE, "  decide")) == "fail/not_proved"
    assert told(lean.judge(FALSE, "  exact falsehood")) == "fail/not_proved"
    assert lean.quarantined == ""


def test_the_verifier_is_found_by_name_and_refuses_bad_options() -> None:
    with pytest.raises(VerifierError, match="url is not set"):
        make("lean", {"backend": "kimina"})
    with pytest.raises(VerifierError, match="more provable than is true"):
        make("lean", {"backend": "repl", "axioms": ["propext", "sorryAx"]})
    with pytest.raises(VerifierError, match="nonsense"):
        make("lean", {"nonsense": 1})


def test_the_key_is_never_shown() -> None:
    made = Lean(backend="kimina", url="http://127.0.0.1:9", key="s3cret")
    assert "s3cret" not in repr(made.settings) + made.settings.model_dump_json() + made.version
    assert "s3cret" not in made.judge(TRUE, "  omega").detail


# --- REPL


def test_a_repl_is_replaced_after_its_number_of_checks() -> None:
    lean = repl(recycle=3)
    try:
        lean.try_canaries(now=True)
        seen = set()
        for _ in range(6):
            assert told(lean.judge(TRUE, "  omega")) == "pass/proved"
            seen.update(process.pid for process in repls())
        assert len(seen) >= 2
    finally:
        lean.close()


def test_a_hanging_repl_is_an_error_and_its_whole_group_is_killed() -> None:
    mark = f"of-{os.getpid()}"
    lean = repl("hang", mark, seconds=0.5)
    begin = time.monotonic()
    assert told(lean.judge(TRUE, "  omega")) == "error/deadline"
    assert time.monotonic() - begin < 10
    lean.close()
    for process in psutil.process_iter():
        try:
            assert mark not in process.cmdline() or process.status() == psutil.STATUS_ZOMBIE
        except psutil.Error:
            continue


@pytest.mark.parametrize(
    ("word", "reason"), [("die", "lean_died"), ("garbage", "lean_output"), ("flood", "lean_output")]
)
def test_a_repl_that_breaks_the_protocol_is_an_error_and_not_kept(word: str, reason: str) -> None:
    lean = repl(word)
    for _ in range(2):
        assert told(lean.judge(TRUE, "  omega")) == f"error/{reason}"
    lean.close()
    assert not repls()


def test_a_repl_that_cannot_be_started_is_an_error() -> None:
    assert told(Lean(backend="repl", repl=["/no/such/repl"]).judge(TRUE, "  omega")) == "error/lean_missing"


def said_by_a_repl(script: str, **options: Any) -> str:
    """What a REPL that is this script writes to its stderr, up to 300 bytes."""
    lean = Lean(backend="repl", repl=["sh", "-c", f"({script}) >&2; exit 3"], start_seconds=10, **options)
    try:
        said = lean.judge(TRUE, "  omega")
        assert told(said) == "error/lean_died"
        return said.detail
    finally:
        lean.close()


def test_a_repl_does_not_inherit_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    assert "unset /lib" in said_by_a_repl("echo ${SECRET_TOKEN-unset} $LEAN_PATH", environment={"LEAN_PATH": "/lib"})


def test_a_repl_reads_the_project_and_nothing_else_and_writes_to_its_own_directory_only(tmp_path: Path) -> None:
    project, outside = tmp_path / "project", tmp_path / "outside"
    project.mkdir()
    (project / "Basic.olean").write_text("a library")
    outside.write_text("secret")
    script = f"""
        cat Basic.olean; exec 2>&-
        cat {outside}; echo x > Basic.olean; echo x > new; echo x > {tmp_path}/new
        echo written > "$HOME/own" && cat "$HOME/own"
    """
    assert said_by_a_repl(script, project=project).endswith("a librarywritten")
    assert (project / "Basic.olean").read_text() == "a library"
    assert [path.name for path in (*tmp_path.iterdir(), *project.iterdir())] == ["project", "outside", "Basic.olean"]


def test_a_check_is_repeated_if_the_repl_ended_because_of_those_before_it() -> None:
    lean = repl("leak", memory_bytes=1 << 28)
    try:
        lean.try_canaries(now=True)
        assert [told(lean.judge(TRUE, "  omega")) for _ in range(4)] == ["pass/proved"] * 4
    finally:
        lean.close()


def test_several_threads_share_the_pool() -> None:
    lean = repl(processes=2)
    with ThreadPoolExecutor(6) as threads:
        said = list(threads.map(lambda _: told(lean.judge(TRUE, "  omega")), range(18)))
    assert said == ["pass/proved"] * 18
    assert len(repls()) <= 2
    lean.close()


# --- command


def command(*words: str, **options: Any) -> Lean:
    if reason := reachable():
        pytest.skip(reason)
    lean = [sys.executable, str(HERE / "lean_peers.py"), str(EXCHANGES), *words]
    return Lean(**{"backend": "command", "lean": lean, "sandbox": READABLE, "seconds": 30, **options})


def test_a_confined_command_judges() -> None:
    lean = command()
    try:
        assert told(lean.judge(TRUE, "  omega")) == "pass/proved"
        assert told(lean.judge(FALSE, "  decide")) == "fail/not_proved"
    finally:
        lean.close()


@pytest.mark.parametrize(("word", "reason"), [("die", "lean_died"), ("hang", "deadline"), ("flood", "lean_died")])
@pytest.mark.slow
def test_a_command_that_gives_no_answer_is_an_error(word: str, reason: str) -> None:
    lean = command(word, seconds=3)
    try:
        assert told(lean.judge(TRUE, "  omega")) == f"error/{reason}"
    finally:
        lean.close()


def test_a_missing_command_is_an_error() -> None:
    lean = Lean(backend="command", lean=["/no/such/lean"], seconds=5)
    assert told(lean.judge(TRUE, "  omega")) == "error/lean_missing"
    lean.close()


# --- Kimina


@pytest.mark.parametrize(("status", "reason"), [(404, "server"), (500, "server"), (502, "server")])
def test_a_failing_server_is_an_error_and_never_a_fail(status: int, reason: str) -> None:
    with kimina(Peer(EXCHANGES), first=[status]) as (url, _):
        lean = Lean(backend="kimina", url=url, seconds=5)
        assert told(lean.judge(TRUE, "  omega")) == f"error/{reason}"
        assert told(lean.judge(TRUE, "  omega")) == "pass/proved"


BUSY = [[429, 503], ["no REPL"], ["whole request took too long"], ["import", "no REPL"], ["import", "header timed out"]]


@pytest.mark.parametrize("first", BUSY, ids=str)
def test_a_busy_server_is_asked_again(first: list[str | int]) -> None:
    with kimina(Peer(EXCHANGES), first=first) as (url, _):
        lean = Lean(backend="kimina", url=url, seconds=5)
        assert told(lean.judge(TRUE, "  omega")) == "pass/proved"


def test_a_server_that_stays_busy_is_an_error_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "ALLOWANCE_SECONDS", 0.0)
    monkeypatch.setattr(backend, "SLACK_SECONDS", 0.0)
    with kimina(Peer(EXCHANGES), first=["no REPL"] * 100) as (url, _):
        lean = Lean(backend="kimina", url=url, seconds=1, start_seconds=0.1, batch=1)
        said = lean.judge(TRUE, "  omega")
        assert told(said) == "error/server_busy" and said.detail == "No available REPLs"


def test_a_wrong_key_a_dead_server_and_a_timeout_are_errors(server: tuple[str, list[int]]) -> None:
    assert told(Lean(backend="kimina", url=server[0], key="wrong").judge(TRUE, "  omega")) == "error/server_key"
    assert told(Lean(backend="kimina", url="http://127.0.0.1:9").judge(TRUE, "  omega")) == "error/server"
    with kimina(Peer(EXCHANGES, frozenset({"timeout"}))) as (url, _):
        assert told(Lean(backend="kimina", url=url).judge(TRUE, "  omega")) == "error/deadline"
    with kimina(Peer(EXCHANGES, frozenset({"garbage"}))) as (url, _):
        assert told(Lean(backend="kimina", url=url).judge(TRUE, "  omega")) == "error/lean_output"


def test_snippets_are_sent_in_batches_and_one_failing_snippet_does_not_affect_the_others() -> None:
    with kimina(Peer(EXCHANGES), failing="Nat.add_comm a b") as (url, sizes):
        lean = Lean(backend="kimina", url=url, seconds=20, batch=8)
        lean.try_canaries(now=True)
        gate = threading.Barrier(9)

        def one(answer: str) -> str:
            gate.wait()
            return told(lean.judge(TRUE, answer))

        with ThreadPoolExecutor(9) as threads:
            said = list(threads.map(one, ["  omega"] * 8 + ["  exact Nat.add_comm a b"]))
        assert said == ["pass/proved"] * 8 + ["error/server"]
        assert max(sizes) > 1


def test_a_sorry_that_the_server_lets_through_is_not_a_pass() -> None:
    with kimina(Peer(EXCHANGES, frozenset({"sorry"}))) as (url, _):
        assert told(Lean(backend="kimina", url=url).judge(TRUE, "  omega")) == "error/no_finding"


# --- canaries


@pytest.mark.parametrize("backend", ["repl", "kimina"])
def test_a_proved_canary_quarantines_the_verifier_for_good(backend: str, caplog: pytest.LogCaptureFixture) -> None:
    with kimina(Peer(EXCHANGES, frozenset({"valid"}))) as (url, _), caplog.at_level(logging.CRITICAL, "sieve.lean"):
        lean = repl("valid") if backend == "repl" else Lean(backend="kimina", url=url)
        assert told(lean.judge(TRUE, "  omega")) == "error/quarantined"
        assert told(lean.judge(FALSE, "  decide")) == "error/quarantined"
        assert lean.quarantined == "sorry"
        assert "QUARANTINED" in caplog.text
        lean.close()


def test_canaries_are_tried_again_at_intervals() -> None:
    with kimina(Peer(EXCHANGES)) as (url, sizes):
        lean = Lean(backend="kimina", url=url, canary_seconds=0.2)
        lean.judge(TRUE, "  omega")
        first = len(sizes)
        lean.judge(TRUE, "  omega")
        assert len(sizes) == first + 1
        time.sleep(0.25)
        lean.judge(TRUE, "  omega")
        assert len(sizes) > first + 2


# --- external checker


@pytest.mark.parametrize(
    ("code", "expected", "again"),
    [(0, "pass/proved", 1), (1, "error/replay_disagrees", 2), (4, "error/replay_trouble", 2)],
)
def test_the_external_checker_is_asked_once_about_each_statement(
    code: int, expected: str, again: int, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    script = tmp_path / "checker.sh"
    script.write_text(f'#!/bin/sh\ncat "$1" >> {asked}\nexit {code}\n')
    script.chmod(0o755)
    lean = repl(replay=[str(script)])
    try:
        for _ in range(2):
            assert told(lean.judge(TRUE, "  omega")) == expected
        assert asked.read_text().count("theorem truth (a b : Nat) : a + b = b + a := by\n  omega") == again
    finally:
        lean.close()


# --- doctor


def test_doctor_says_what_is_missing(tmp_path: Path, server: tuple[str, list[int]]) -> None:
    assert check(LeanSettings(backend="kimina", url=server[0])) == []  # type: ignore[arg-type]
    assert "cannot be reached" in check(LeanSettings(backend="kimina", url="http://127.0.0.1:9"))[0]  # type: ignore[arg-type]
    missing = "\n".join(
        check(LeanSettings(backend="repl", project=tmp_path, environment={"PATH": str(tmp_path), "LEAN_PATH": "/none"}))
    )
    for sign in (
        "no lakefile",
        "no lean-toolchain",
        "nothing is built",
        "lake is not found",
        "repl is not found",
        "/none",
    ):
        assert sign in missing
    assert "not a directory" in check(LeanSettings(backend="repl", project=tmp_path / "none"))[0]


@pytest.mark.parametrize("backend", ["repl", "command"])
def test_doctor_says_that_programs_cannot_be_confined(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without bwrap
    settings = {"backend": backend, backend.replace("command", "lean"): (sys.executable,)}
    missing = check(LeanSettings.model_validate(settings | {"sandbox": {"level": "bubblewrap"}}))
    assert len(missing) == 1 and missing[0].startswith("sandbox: ") and "bwrap" in missing[0]


def test_importing_the_package_needs_no_lean() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import verifier.builtin.lean.verifier"], cwd=HERE.parents[3], check=False
    )
    assert done.returncode == 0
