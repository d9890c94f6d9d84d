"""The verifying service against a real Redis: outcomes, retries, sharing of work, stops and kills."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from broker.errors import EX_TEMPORARY, EX_USAGE
from broker.runtime.redis_program import Binary
from broker.runtime.redis_server import Server
from broker.settings import BrokerSettings, RunSettings
from tests.broker.builders import EveryRole
from tests.timing import least
from tests.verifier.verifier_rig import Rig, obedient, ready, serving, until
from verifier.protocol import VerifierError, make
from verifier.service import VerifierService


def test_three_outcomes_reach_the_group_or_the_dead_letters(rig: Rig) -> None:
    broker = rig.open(["pass a", "fail", "length:pass b", "crash", "error", "exit"], n=6)
    service = VerifierService(rig.config(obedient()), url=rig.url)
    with serving(service):
        until(lambda: ready(broker) == 1, 20, "the group is judged")
    group = broker.groups(broker.lease(rig.epoch, 1, 1) or [])[0]
    said = Counter((m.completion.text, m.verdict.outcome, m.verdict.reason, m.verdict.answer) for m in group.members)
    assert said == Counter(
        [("pass a", "pass", "told", "pass a"), ("fail", "fail", "told", ""), ("pass b", "fail", "truncated", "")]
    )
    assert group.closed_short == 3
    letters = broker.dead_letters()
    assert sorted(letter.reason for letter in letters) == ["crashed", "crashed", "told"]
    assert all(letter.verdict is not None and letter.verdict.verifier == "obedient/1" for letter in letters)


def test_what_one_verifier_cannot_judge_is_judged_by_another(rig: Rig) -> None:
    broker = rig.open([f"pass {i}" for i in range(24)])
    broken = VerifierService(rig.config(obedient(options={"broken": True})), index=0, url=rig.url)
    # Slowly and one at a time, so that work is left for the other however late it starts.
    sound = VerifierService(rig.config(obedient(options={"seconds": 0.1}, batch=1)), index=1, url=rig.url)
    with serving(broken, sound):
        until(lambda: ready(broker) == 24, 30, "all groups are judged")
    assert sound.values["passed"] == 24
    assert broken.values["verdicts"] >= 1
    assert broker.dead_letters() == []
    assert broker.audit().lost == 0


def test_a_completion_that_no_verifier_can_judge_is_dead_lettered(rig: Rig) -> None:
    broker = rig.open(["pass"] * 4, n=4)
    services = [VerifierService(rig.config(obedient(options={"broken": True})), index=i, url=rig.url) for i in range(2)]
    with serving(*services):
        until(lambda: len(broker.dead_letters()) == 4, 20, "all completions are dead letters")
    assert sum(service.values["verdicts"] for service in services) == 4 * rig.attempts


def test_a_verifier_that_returns_only_errors_slows_down_and_recovers(rig: Rig, tmp_path: Path) -> None:
    flag = tmp_path / "tool"
    rig.attempts = 10
    broker = rig.open([f"needs {flag} {i}" for i in range(4)], n=4)
    service = VerifierService(rig.config(obedient()), url=rig.url)
    with serving(service):
        until(lambda: service.values["verdicts"] >= 4, 10, "it is at work")
        time.sleep(0.7)
        assert service.values["verdicts"] < 25  # without a pause, 40 attempts take 0.1 s
        ready_now, why = service._is_ready()
        assert not ready_now and "verifier_errors" in why and "every verdict is an error" in why
        flag.touch()
        until(lambda: ready(broker) == 1, 10, "the group is judged")
        until(lambda: service._is_ready()[0], 5, "it is ready again")
    assert service.values["passed"] == 4
    assert broker.dead_letters() == []


@pytest.mark.slow
def test_work_survives_a_redis_that_is_killed_and_started_again(server_binary: Binary, tmp_path: Path) -> None:
    run = RunSettings(directory=tmp_path / "redis")
    with Server.start(BrokerSettings(), run, server_binary) as server:
        rig = Rig(server.url, tmp_path, "verifying", lease_seconds=2.0, attempts=3)
        broker = rig.open([f"sleep 0.02 {i}" for i in range(100)])
        service = VerifierService(rig.config(obedient(concurrency=2)), url=rig.url)
        with serving(service) as codes:
            until(lambda: judged(broker) >= 10, 20, "it is at work")
            os.kill(server.pid, signal.SIGKILL)
            time.sleep(0.5)
            server.ensure()
            until(lambda: ready(broker) == 100, 30, "all groups are judged")
        assert codes == [0]
        assert broker.audit().lost == 0
        assert broker.dead_letters() == []


def test_two_queues_are_served_by_one_process(rig: Rig) -> None:
    broker = rig.open(
        ["( 3 + 7 ) * 2", "2*(7+3)", "3*7-2", "20"], verifier="arithmetic", record={"numbers": [2, 3, 7], "target": 20}
    )
    service = VerifierService(rig.config({**obedient(), "arithmetic": {}}), url=rig.url)
    with serving(service):
        until(lambda: ready(broker) == 4, 20, "all groups are judged")
        said = {heartbeat.role: heartbeat.queues for heartbeat in broker.services()}
        assert said == {"learner": (), "actor": (), "verifier": ("obedient", "arithmetic")}
    answers = [m.verdict.answer for g in broker.groups(broker.lease(rig.epoch, 1, 4) or []) for m in g.members]
    assert sorted(answers) == ["", "", "2*(3+7)", "2*(3+7)"]


@pytest.mark.slow
def test_a_second_verifier_started_later_takes_about_half_of_the_work(rig: Rig) -> None:
    broker = rig.open([f"sleep 0.02 {i}" for i in range(240)])
    config = rig.config(obedient())
    first, second = (VerifierService(config, index=i, url=rig.url) for i in range(2))
    with serving(first):
        until(lambda: first.values["verdicts"] >= 40, 20, "the first is at work")
        before = first.values["verdicts"]
        with serving(second):
            until(lambda: ready(broker) == 240, 30, "all groups are judged")
    taken = second.values["verdicts"] / (240 - before)
    assert 0.35 < taken < 0.6, f"the second took {taken:.0%} of what was left"
    assert first.values["verdicts"] + second.values["verdicts"] == 240


@pytest.mark.slow
def test_slow_verdicts_overlap_in_one_process(rig: Rig) -> None:
    broker = rig.open([f"sleep 0.5 {i}" for i in range(16)])
    service = VerifierService(rig.config(obedient(concurrency=8)), url=rig.url)
    with serving(service):
        until(lambda: service.values["verdicts"] > 0, 20, "it is at work")
        took = until(lambda: ready(broker) == 16, 20, "all groups are judged")
    assert took < 2.0  # 8 s one after the other


@pytest.mark.slow
def test_a_verdict_slower_than_the_lease_is_given_once(rig: Rig, tmp_path: Path) -> None:
    rig.lease_seconds = 1.0
    trace = tmp_path / "trace"
    broker = rig.open([f"sleep 3.5 {i}" for i in range(2)])
    config = rig.config(obedient(options={"trace": str(trace)}))
    services = [VerifierService(config, index=i, url=rig.url) for i in range(3)]
    with serving(*services):
        until(lambda: ready(broker) == 2, 20, "both groups are judged")
    assert sorted(line.split(" ", 1)[1] for line in trace.read_text().splitlines()) == ["sleep 3.5 0", "sleep 3.5 1"]


@pytest.mark.slow
def test_a_verdict_beyond_its_deadline_is_an_error_and_the_others_go_on(rig: Rig) -> None:
    broker = rig.open(["hang", "pass 1", "pass 2", "pass 3"], n=4)
    service = VerifierService(rig.config(obedient(deadline_seconds=0.5, concurrency=4)), url=rig.url)
    with serving(service) as codes:
        until(lambda: ready(broker) == 1, 20, "the group is judged")
    assert codes == [0]
    assert [letter.reason for letter in broker.dead_letters()] == ["deadline"]
    assert service.values["passed"] == 3


@pytest.mark.slow
def test_a_process_full_of_hanging_verdicts_ends_with_the_code_for_a_restart(rig: Rig) -> None:
    broker = rig.open(["hang"])
    service = VerifierService(rig.config(obedient(deadline_seconds=0.2), drain_seconds=0.2), url=rig.url)
    with serving(service) as codes:
        until(lambda: bool(codes), 20, "the service ends")
    assert codes == [EX_TEMPORARY]
    assert broker.audit().lost == 0


@pytest.mark.slow
def test_a_stop_requeues_unfinished_work_at_once(rig: Rig, tmp_path: Path) -> None:
    rig.lease_seconds = 30.0  # no lease expires during this test
    trace = tmp_path / "trace"
    broker = rig.open([f"sleep 20 {i}" for i in range(2)] + [f"pass {i}" for i in range(2)])
    process = rig.process(rig.config(obedient(concurrency=4, options={"trace": str(trace)}), drain_seconds=0.3))
    try:
        until(lambda: trace.exists() and trace.read_text().count("sleep") == 2, 20, "two verdicts are under way")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
    waiting = broker.receive("obedient", "other", 10, 1.0)
    assert sorted(work.completion.text for work in waiting if work.completion.text.startswith("sleep")) == [
        "sleep 20 0",
        "sleep 20 1",
    ]
    assert all(work.attempt == 1 for work in waiting)


@pytest.mark.slow
def test_a_verdict_that_ends_while_draining_still_counts(rig: Rig, tmp_path: Path) -> None:
    rig.lease_seconds = 30.0
    trace = tmp_path / "trace"
    broker = rig.open(["sleep 1"])
    process = rig.process(rig.config(obedient(options={"trace": str(trace)}), drain_seconds=10))
    try:
        until(lambda: trace.exists(), 20, "the verdict is under way")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
    assert ready(broker) == 1


@pytest.mark.slow
def test_killing_a_verifier_loses_nothing(rig: Rig) -> None:
    rig.lease_seconds = 1.0
    broker = rig.open([f"sleep 0.01 {i}" for i in range(300)], n=3)
    config = rig.config(obedient(concurrency=4))
    processes = [rig.process(config, index) for index in range(2)]
    try:
        until(lambda: judged(broker) >= 60, 30, "both are at work")
        processes[0].send_signal(signal.SIGKILL)
        until(lambda: ready(broker) == 100, 30, "all groups are judged")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    groups = broker.groups(broker.lease(rig.epoch, 1, 100) or [])
    texts = sorted(member.completion.text for group in groups for member in group.members)
    assert texts == sorted(f"sleep 0.01 {i}" for i in range(300))
    assert broker.audit().lost == 0
    assert broker.dead_letters() == []


@pytest.mark.slow
def test_an_answer_that_ends_its_verifier_is_given_up_after_its_attempts_and_ends_no_other(rig: Rig) -> None:
    rig.lease_seconds = 1.0
    broker = rig.open(["die", *(f"pass {i}" for i in range(39))], n=4)
    config = rig.config(obedient(concurrency=2))
    ends = 0
    process = rig.process(config)
    try:
        until_ready = time.monotonic() + 60
        while ready(broker) < 10:
            assert time.monotonic() < until_ready, f"{ends} verifiers ended"
            if process.poll() is not None:
                assert process.returncode == 3
                ends += 1
                process = rig.process(config, ends)
            time.sleep(0.02)
        time.sleep(0.5)
        assert process.poll() is None  # the next verifier is not given it again
    finally:
        process.kill()
        process.wait()
    assert ends == rig.attempts
    (letter,) = broker.dead_letters()
    assert letter.reason == "no_verdict" and len(letter.history) == rig.attempts
    audit = broker.audit()
    assert (audit.lost, audit.dead_letters) == (0, 1)


def test_the_service_ends_by_itself_when_the_run_is_finished(rig: Rig) -> None:
    broker = rig.open(["pass"])
    service = VerifierService(rig.config(obedient()), url=rig.url)
    with serving(service) as codes:
        until(lambda: ready(broker) == 1, 20, "the group is judged")
        broker.finish(rig.epoch)
        until(lambda: bool(codes), 10, "the service ends")
    assert codes == [0]


def test_a_verifier_may_start_before_the_run_exists(rig: Rig) -> None:
    service = VerifierService(rig.config(obedient()), url=rig.url)
    with serving(service) as codes:
        until(lambda: service.heartbeat().phase == "idle", 10, "the service is idle")
        broker = rig.open(["pass"])
        until(lambda: ready(broker) == 1, 20, "the group is judged")
    assert codes == [0]


def test_metrics_count_verdicts_replies_and_waits(rig: Rig) -> None:
    broker = rig.open(["pass 1", "pass 2", "fail", "crash"], n=4)
    service = VerifierService(rig.config(obedient()), url=rig.url)
    with serving(service):
        until(lambda: ready(broker) == 1, 20, "the group is judged")

    def sample(name: str, **labels: str) -> float | None:
        return service.registry.get_sample_value(name, {"verifier": "obedient", **labels})

    assert sample("sieve_verdicts_total", outcome="pass", reason="told") == 2
    assert sample("sieve_verdicts_total", outcome="fail", reason="told") == 1
    assert sample("sieve_verdicts_total", outcome="error", reason="crashed") == 3
    assert sample("sieve_verdict_replies_total", reply="retry") == 2
    assert sample("sieve_verdict_replies_total", reply="dead") == 1
    assert sample("sieve_verdict_seconds_count") == 6
    assert sample("sieve_verify_queue_wait_seconds_count") == 6
    assert sample("sieve_verifier_in_hand") == 0


def test_an_unknown_verifier_ends_the_service_with_a_usage_error(rig: Rig) -> None:
    service = VerifierService(rig.config({"arithmatic": {}}), url=rig.url)
    assert service.run() == EX_USAGE
    with pytest.raises(VerifierError, match=r"no queue 'lean' in verifier\.serve"):
        VerifierService(rig.config({"arithmetic": {}}), url=rig.url, names=["lean"])


@pytest.mark.alone
@pytest.mark.slow
def test_a_verdict_of_arithmetic_costs_the_service_at_most_ten_bare_judgements(rig: Rig) -> None:
    """A ratio of one run, since machines differ: 5,000 verdicts a CPU second where a bare judgement takes 20 µs."""
    count = 20_000
    verifier, record = make("arithmetic"), {"numbers": (2, 3, 5, 7), "target": 15}
    begin = time.process_time()
    for _ in range(count):
        verifier.judge(record, "( 3 + 7 ) * 2 - 5")
    bare = time.process_time() - begin
    names = iter(["first", "second", "third"])

    def cpu_seconds() -> float:
        """Of a verifier process that judges `count` answers, its start included."""
        rig.name = next(names)
        broker = rig.open(
            ["( 3 + 7 ) * 2 - 5", "( 3 + 7 ) * 2 + 5"] * (count // 2),
            n=50,
            verifier="arithmetic",
            record={"numbers": [2, 3, 5, 7], "target": 15},
        )
        process = rig.process(rig.config({"arithmetic": {}}))
        try:
            until(lambda: ready(broker) == count // 50, 60, "all groups are judged")
            broker.finish(rig.epoch)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert process.wait(20) == 0
        finally:
            process.kill()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    used = least(cpu_seconds, 10 * bare)
    assert used < 10 * bare, f"{count / used:.0f} verdicts a CPU second, {count / bare:.0f} bare judgements"


@pytest.mark.alone
def test_a_verifier_process_imports_no_heavy_package() -> None:
    code = (
        "import sys, time; import verifier.service, verifier.builtin.arithmetic\n"
        "heavy = {'torch', 'ray', 'transformers', 'vllm', 'matplotlib', 'typer'} & set(sys.modules)\n"
        "print(sorted(heavy), time.process_time())"
    )
    root = Path(__file__).parents[2]

    def cpu_seconds() -> float:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root), "OPENBLAS_NUM_THREADS": "1"},
        )
        heavy, seconds = done.stdout.rsplit(" ", 1)
        assert heavy == "[]"
        return float(seconds)

    assert least(cpu_seconds, 1.0) < 1.0


def judged(broker: EveryRole) -> int:
    depths = broker.depths()
    return depths.passed + depths.failed
