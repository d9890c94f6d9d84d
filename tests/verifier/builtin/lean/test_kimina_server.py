"""The back end `kimina` against the server of PyPI, whose REPLs are stand-ins; skipped where it is not installed.

`SIEVE_RECORD_KIMINA=1` writes what the server says in each situation to exchanges/kimina.json, which the stand-in of
the quick tests repeats.
"""

from __future__ import annotations

import collections
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.verifier.builtin.lean.kimina_server import KEY, PYTHON, kimina_server
from tests.verifier.builtin.lean.lean_peers import EXCHANGES
from verifier.builtin.lean.assembly import Check, assemble
from verifier.builtin.lean.kimina_header import PROBE, body, header
from verifier.builtin.lean.verifier import Lean
from verifier.protocol import Judgement

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="no Kimina server: make .venv-kimina/installed"),
]

TRUE = {"header": "", "name": "truth", "statement": "theorem truth (a b : Nat) : a + b = b + a := by\n"}
FALSE = {"header": "", "name": "falsehood", "statement": "theorem falsehood : (1 : Nat) = 2 := by\n"}
CHECK_SECONDS = 0.7
IMPORT_SECONDS = 4
"""Longer than the deadline of a check in these tests."""
MAX_WAIT = 12
"""Seconds after which the server says that it has no REPL."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kimina")


@pytest.fixture(scope="module")
def url(directory: Path) -> Iterator[str]:
    """A server of two REPLs, in which an import takes longer than a check may."""
    slow = [f"import={IMPORT_SECONDS}", f"check={CHECK_SECONDS}"]
    with kimina_server(
        directory, f"log={directory}/log", *slow, "stuck=add_comm", "dies=ring_nf", max_wait=MAX_WAIT
    ) as found:
        yield found


def kimina(url: str, **options: Any) -> Lean:
    return Lean(**{"backend": "kimina", "url": url, "key": KEY, "seconds": 3, "start_seconds": 30, **options})


def told(said: Judgement) -> str:
    return f"{said.outcome}/{said.reason}"


def commands(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "log").read_text().splitlines()]


@pytest.mark.alone
def test_waiting_for_one_of_few_repls_is_no_error_and_the_checker_is_elaborated_once_in_each(
    url: str, directory: Path
) -> None:
    lean = kimina(url, batch=16)
    lean.try_canaries(now=True)
    begin = time.monotonic()
    with ThreadPoolExecutor(17) as threads:
        said = list(threads.map(lambda _: told(lean.judge(TRUE, "  omega")), range(17)))
    assert collections.Counter(said) == {"pass/proved": 17}
    # 17 checks in two REPLs, one import of the second REPL; a factor of 3 for a busy machine.
    assert time.monotonic() - begin < 3 * (17 / 2 * CHECK_SECONDS + IMPORT_SECONDS)
    sent = commands(directory)
    checkers = collections.Counter(one["pid"] for one in sent if "#sieve_run" in one["cmd"])
    checks = collections.Counter(one["pid"] for one in sent if "#sieve_check" in one["cmd"])
    assert set(checkers.values()) == {1} and checks.keys() <= checkers.keys() and checks.total() > 17
    assert not any("#sieve_run" in one["cmd"] and "#sieve_check" in one["cmd"] for one in sent)


def test_a_comment_before_the_imports_hides_no_header(url: str) -> None:
    lean = kimina(url)
    record = {**TRUE, "header": "/- import Nothing\n-/\n-- and more\nimport Lean -- here\n"}
    assert [told(lean.judge(record, "  omega")) for _ in range(3)] == ["pass/proved"] * 3


def test_a_check_that_never_ends_and_one_that_ends_its_repl_are_the_only_errors_of_their_request(url: str) -> None:
    lean = kimina(url, batch=8)
    lean.try_canaries(now=True)
    answers = ["  omega"] * 3 + ["  exact Nat.add_comm a b", "  ring_nf"] + ["  omega"] * 3
    with ThreadPoolExecutor(len(answers)) as threads:
        said = list(threads.map(lambda answer: told(lean.judge(TRUE, answer)), answers))
    assert said[3:5] == ["error/deadline", "error/lean_died"] or said[3:5] == ["error/deadline", "error/deadline"]
    assert said[:3] + said[5:] == ["pass/proved"] * 6


def test_an_import_that_takes_too_long_is_an_error_of_its_own(url: str) -> None:
    said = kimina(url, start_seconds=1).judge({**TRUE, "header": "import Other"}, "  omega")
    assert told(said) == "error/deadline" and "start_seconds = 1" in said.detail


# --- what the server says


def said_by(url: str, snippets: list[tuple[Check, str]], timeout: int, key: str = KEY) -> dict[str, Any]:
    """The server's answer to checks under the given headers, without nonces, times and numbers of environments."""
    listed = [{"id": check.nonce, "code": f"{top}{body(check)}"} for check, top in snippets]
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    asked = json.dumps({"snippets": listed, "timeout": timeout, "reuse": True}).encode()
    request = urllib.request.Request(f"{url}/api/check", asked, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            status, text = reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    for check, _ in snippets:
        text = text.replace(check.nonce, "0" * 32)
    found = json.loads(text)
    for result in found.get("results", []):
        result["time"] = 0
        if "response" in result:
            result["response"]["env"] = 0
        if "repl_uuid" in result.get("diagnostics", {}):
            result["diagnostics"]["repl_uuid"] = "0" * 32
    return {"status": status, "body": found}


def made(record: dict[str, str], answer: str) -> Check:
    return assemble(
        record["header"], record["name"], record["statement"].removesuffix(" by\n"), answer, library="trust"
    )


def exchanges(url: str) -> dict[str, Any]:
    """What the server says in each situation."""
    proved, refuted = made(TRUE, "\n  omega"), made(FALSE, "\n  decide")
    stuck = [made(TRUE, "\n  exact Nat.add_comm a b") for _ in range(2)]
    dying = made(TRUE, "\n  ring_nf")
    top = header(proved) + "\n"
    other = top.replace("import Lean", "import Init\nimport Lean")
    health = urllib.request.urlopen(f"{url}/health", timeout=10)
    found = {
        "health": {"status": health.status, "body": json.load(health)},
        "no key": said_by(url, [(proved, top)], 5, key=""),
        "wrong key": said_by(url, [(proved, top)], 5, key="wrong"),
        "header timed out": said_by(url, [(proved, other)], 1),
        "import": said_by(url, [(replace(proved, context="", command=PROBE), top)], 30),
        "proved": said_by(url, [(proved, top)], 30),
        "not proved": said_by(url, [(refuted, top)], 30),
        # The first of these is run with its imports; the second, in the environment after the first.
        "header hidden by a comment": [said_by(url, [(refuted, f"--\n{top}")], 30) for _ in range(2)][1],
        "check timed out": said_by(url, [(stuck[0], top)], 2),
        "REPL ended": said_by(url, [(dying, top)], 30),
    }
    with ThreadPoolExecutor(2) as threads:
        holding = threads.submit(said_by, url, [(check, top) for check in stuck], 12)
        time.sleep(1)  # both REPLs are taken by then
        busy = threads.submit(said_by, url, [(proved, top)], 10)
        found["whole request took too long"] = said_by(url, [(refuted, top)], 1)
        found["no REPL"] = busy.result()
        assert holding.result()["status"] == 200
    return found


def test_the_recorded_exchanges_are_what_the_server_says(url: str) -> None:
    found = exchanges(url)
    path = EXCHANGES / "kimina.json"
    if os.environ.get("SIEVE_RECORD_KIMINA"):
        about = "recorded from kimina-ast-server 2.1.3 of PyPI, with the REPLs of lean_peers.py"
        path.write_text(json.dumps({"about": about, "exchanges": found}, indent=1, ensure_ascii=False) + "\n")
    assert found == json.loads(path.read_text())["exchanges"]
