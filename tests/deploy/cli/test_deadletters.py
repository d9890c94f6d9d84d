"""`sieve deadletter list|show|retry` on a run with dead letters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.broker.builders import begin, connect, offer_all, open_run, verdict

ROOT = Path(__file__).resolve().parents[3]
Sieve = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def sieve(tree: dict[str, Any], write: Callable[[Any], Path], redis_url: str) -> Sieve:
    """Runs `sieve deadletter …` against a run of one group: two dead letters, one pass."""
    path = write(tree)
    broker = connect(redis_url, name="small", verify_attempts=1)
    open_run(broker, steps=1, groups_per_step=1, max_staleness=0, group_size=3)
    broker.publish(begin(broker), 0, 0)
    offer_all(broker, "a", broker.take("a", 3).tickets)
    first, second, third = broker.receive("arithmetic", "v", 10, 0.01)
    crashed = verdict("error").model_copy(update={"detail": "\x1b]0;x\x07\u202e\nreason      right", "reason": "a\nb"})
    broker.judge("arithmetic", "v", [(first, crashed), (second, verdict()), (third, verdict("error"))])
    broker.close()

    def run(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sieve", "deadletter", command, str(path), *arguments],
            capture_output=True, text=True, cwd=ROOT, timeout=60, check=False,
            env={**os.environ, "SIEVE_BROKER__URL": redis_url},
        )  # fmt: skip

    return run


def entries(sieve: Sieve) -> list[str]:
    listed = sieve("list")
    assert listed.returncode == 0, listed.stderr
    return [line.split()[0] for line in listed.stdout.splitlines()]


@pytest.mark.slow
def test_a_letter_is_listed_shown_and_retried_once(sieve: Sieve) -> None:
    newest, oldest = entries(sieve)
    shown = sieve("show", oldest)
    assert shown.returncode == 0 and "last verdict error (a b) by arithmetic/1" in shown.stdout
    assert all(line.isprintable() for line in shown.stdout.split("\n")) and "\n    reason      right" in shown.stdout
    done = sieve("retry", oldest)
    assert (done.returncode, done.stdout.split()) == (0, [oldest, "retried"])
    assert entries(sieve) == [newest]
    again = sieve("retry", oldest, newest)
    assert (again.returncode, again.stdout.split()) == (65, [oldest, "gone", newest, "retried"])


@pytest.mark.slow
def test_all_of_them_at_once(sieve: Sieve) -> None:
    done = sieve("retry", "--all")
    assert done.returncode == 0 and done.stdout.count("retried") == 2
    assert entries(sieve) == []
    assert sieve("retry", "--all").returncode == 0


@pytest.mark.slow
def test_it_must_be_said_which(sieve: Sieve) -> None:
    for arguments in ([], ["--all", "1-1"]):
        done = sieve("retry", *arguments)
        assert done.returncode == 64 and "or give --all" in done.stderr
