"""The learner service against a real Redis, with hand-made actors and verifiers in the test."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from broker.errors import RunConflict
from broker.queue.heartbeat import Heartbeat
from broker.queue.state import Work
from broker.queue.wire import Verdict
from broker.weights.cache import WeightsCache
from broker.weights.directory import DirectoryStore
from deploy.config.tree import Config
from deploy.launch.rollback import checkpoints, roll_back
from deploy.observe.account import account
from deploy.rundir.schema import mark_schema
from learner.model.checkpoint import CheckpointCorrupt
from learner.settings import LearnerConfig
from tests.broker.builders import EveryRole, v
from tests.learner.learner_rig import ROOT, save_model, save_prompts, uniform_completion
from tests.ports import hold_port

LONGEST = 4
RUNNER = Path(__file__).with_name("run_learner.py")


class Job:
    """A run directory, learner processes, and one hand that plays actor and verifier."""

    def __init__(self, path: Path, url: str, **changes: Any) -> None:
        self.path, self.url = path, url
        body: dict[str, Any] = {
            "run": {"name": "job", "directory": str(path / "runs"), "seed": 3},
            "broker": {"lease_seconds": 1.5},
            "model": {"path": str(save_model(path / "base"))},
            "data": {
                "train": str(save_prompts(path / "train.jsonl", 40)),
                "eval": str(save_prompts(path / "eval.jsonl", 3)),
            },
            "sampling": {"group_size": 4, "max_new_tokens": LONGEST},
            "schedule": {"steps": 8, "groups_per_step": 6, "checkpoint_every": 3, "max_staleness": 2},
            "evaluation": {"samples": 8, "prompts": 3, "every": 4},
            "weights": {},
            # The hand samples uniformly, whatever version it claims: as far from that version as it likes.
            "learner": {"optimizer": {"lr": 0.02}, "threads": 1, "device": "cpu", "mismatch_nats": 100.0},
        }
        for section, values in changes.items():
            body[section] |= values
        self.config = LearnerConfig.model_validate(body)
        self.file = path / "config.json"
        self.file.write_text(json.dumps(body))
        self.run = self.config.run.path
        mark_schema(self.run)
        self.broker = EveryRole.connect(self.config.broker, self.config.run, url=url)
        self.draw = np.random.default_rng(0)
        self.processes: list[subprocess.Popen[str]] = []
        self.values: dict[str, float] = {}
        """What the hand's heartbeat tells."""

    def start(self, ranks: int = 1) -> None:
        port = str(hold_port())
        for rank in range(ranks):
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            if ranks > 1:
                environment |= {
                    "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank),
                    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                }  # fmt: skip
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, str(RUNNER), str(self.file), self.url],
                    env=environment,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
            )

    def feed(self) -> bool:
        """Sample and judge what there is; False when there was nothing."""
        if self.broker.run_spec(fresh=True) is None:
            return False
        self.broker.heartbeat(Heartbeat(id="hand", role="actor", phase="sampling", values=self.values))
        grant = self.broker.take("hand", 64)
        completions = [
            uniform_completion(
                self.draw, ticket.group_id, ticket.prompt, idx, ticket.n,
                ticket.version if ticket.lane == "eval" else grant.version, LONGEST,
            )[0]
            for ticket in grant.tickets
            for idx in ticket.missing
        ]  # fmt: skip
        if completions:
            self.broker.offer("hand", completions)
        works = self.broker.receive("even", "judge", 256, 0.01)
        self.broker.judge("even", "judge", [(work, self._verdict(work)) for work in works])
        return bool(completions or works)

    def _verdict(self, work: Work) -> Verdict:
        first = int(work.completion.ids[0])
        right = first % 2 == 0
        return Verdict(
            outcome="pass" if right else "fail", reason="even" if right else "odd", seconds=0.0, verifier="even/1",
            answer=str(first) if right else "",
        )  # fmt: skip

    def until(self, reached: Any, seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            for process in self.processes:
                assert process.poll() in (None, 0), process.communicate()[0]
            assert time.monotonic() < deadline, f"not reached: {self.broker.depths()} {self.broker.services()}"
            if not self.feed():
                time.sleep(0.01)

    def wait(self) -> list[str]:
        texts = [process.communicate(timeout=240)[0] for process in self.processes]
        assert [process.returncode for process in self.processes] == [0] * len(texts), texts
        self.processes.clear()
        return texts

    def lines(self, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
        path = self.run / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def job(tmp_path: Path, redis_url: str) -> Iterator[Job]:
    made = Job(tmp_path, redis_url)
    yield made
    for process in made.processes:
        process.kill()
        process.wait()
    made.broker.close()


def pass_probability(path: Path) -> float:
    """Mean probability of an even first token over the prompts w3 … w20."""
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        logits = model(torch.arange(3, 21)[:, None]).logits[:, -1]
    return float(logits.softmax(-1)[:, ::2].sum(-1).mean())


def settled(job: Job, steps: int) -> None:
    """What must hold at the end of every run, however it got there."""
    audit = job.broker.audit()
    assert (audit.lost, audit.duplicates) == (0, 0)
    assert audit.committed == steps * job.config.schedule.groups_per_step
    assert [line["step"] for line in job.lines()] == list(range(1, steps + 1))
    assert all(0 <= line["staleness_max"] <= job.config.schedule.max_staleness for line in job.lines())
    assert job.broker.finished()
    assert account(job.broker, job.config, deep=True).problems == []  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run_trains_publishes_commits_evaluates_and_finishes(job: Job) -> None:
    job.start()
    job.until(job.broker.finished)
    text = job.wait()[0]
    settled(job, 8)

    assert pass_probability(job.run / "model") > pass_probability(job.config.model.path) + 0.05
    assert DirectoryStore(job.run / "weights").versions()[-1].number == job.broker.version() == 8
    evaluations = job.lines("eval.jsonl")
    assert Counter(line["version"] for line in evaluations) == {0: 1, 4: 1, 8: 1}, text
    for line in evaluations:
        raw = job.lines(f"eval/v{line['version']:08d}.jsonl")
        assert [prompt["prompt"] for prompt in raw] == [0, 1, 2]
        assert line["pass@1"] == pytest.approx(np.mean([prompt["correct"] / prompt["n"] for prompt in raw]))
        assert all(len(prompt["samples"]) == prompt["n"] == 8 for prompt in raw)
    expected = {
        "step", "version", "time", "loss", "grad_norm", "lr", "pass_rate", "mean_r", "ess_rho", "ess_rho_alpha",
        "ess_weight", "truncated_share", "z_mean", "z_narrow_share", "staleness_mean", "staleness_max", "mismatch_mean",
        "mismatch_max", "mismatch_staleness",
        "completions", "groups", "tokens", "entropy", "response_length", "seconds", "seconds_waiting",
        "seconds_base", "seconds_backward", "seconds_publish",
    }  # fmt: skip
    for line in job.lines():
        assert expected <= line.keys()
        assert line["completions"] == 24 and line["groups"] == 6 and not line["refused"]
        assert 0 <= line["staleness_max"] <= 2


@pytest.mark.slow
def test_versions_are_deltas_of_each_other_and_one_that_is_being_fetched_stays(tmp_path: Path, redis_url: str) -> None:
    job = Job(
        tmp_path,
        redis_url,
        model={"dtype": "bfloat16"},
        learner={"optimizer": {"lr": 1e-5}, "keep_versions": 2},
        weights={"delta": True},
        evaluation={"every": 0, "base": False},
    )
    job.values = {"fetching": 1.0}
    job.start()
    job.until(job.broker.finished)
    job.wait()
    weights = DirectoryStore(job.run / "weights")
    assert weights.versions() == [v(1), v(7), v(8)]
    newest = weights.manifest(v(8))
    assert newest.delta is not None and newest.delta.base == 7 and newest.delta.bytes < newest.bytes / 2
    cache = WeightsCache(weights, tmp_path / "cache")
    cache.fetch(v(7))
    found = cache.fetch(v(8))
    assert found.bytes == {"copied": 0, "kept": 0, "delta": newest.delta.bytes}
    assert pass_probability(found.directory) == pass_probability(weights.fetch(v(8)).directory)
    job.broker.close()


@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 4, 5])
def test_a_learner_killed_at_any_step_goes_on_without_losing_or_repeating_a_group(job: Job, at: int) -> None:
    job.start()
    job.until(lambda: len(job.lines()) >= at)
    job.processes[0].send_signal(signal.SIGKILL)
    job.processes.pop().wait()
    job.start()
    job.until(job.broker.finished)
    job.wait()
    settled(job, 8)
    versions = [line["version"] for line in job.lines()]
    assert versions == sorted(versions)
    assert Counter(line["version"] for line in job.lines("eval.jsonl"))[0] == 1


@pytest.mark.slow
def test_a_learner_killed_between_checkpoint_and_commit_trains_nothing_twice(job: Job) -> None:
    """Killed within moments of the checkpoint's appearance: before or after the commit, the outcome is the same."""
    job.start()
    job.until((job.run / "checkpoints" / "step-00000003-e0001").exists)
    job.processes[0].send_signal(signal.SIGKILL)
    job.processes.pop().wait()
    assert job.broker.depths().committed_step in (0, 3)
    job.start()
    job.until(job.broker.finished)
    job.wait()
    settled(job, 8)
    audit = job.broker.audit()
    assert audit.trained_completions == 8 * 6 * 4


def files_of_pointer(job: Job) -> dict[str, bytes]:
    """The published version's directory and its bytes."""
    named = job.broker.published(job.broker.version())
    assert named is not None
    directory = job.run / "weights" / str(named.name)
    return {str(path): path.read_bytes() for path in directory.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_learner_that_is_paused_replaced_and_continued_changes_nothing(
    tmp_path: Path, redis_url: str, seed: int
) -> None:
    """Stopped with SIGSTOP at a random moment for longer than its lease, and continued while its successor works."""
    job = Job(tmp_path, redis_url, schedule={"steps": 40, "checkpoint_every": 2}, evaluation={"every": 9})
    draw = np.random.default_rng(seed)
    try:
        job.start()
        job.until(lambda: len(job.lines()) >= 3 + seed)
        (zombie,) = job.processes
        until = time.monotonic() + draw.uniform(0.0, 0.5)
        job.until(lambda: time.monotonic() >= until)
        zombie.send_signal(signal.SIGSTOP)
        job.processes.clear()
        job.start()
        epoch = job.broker.current_epoch()
        job.until(lambda: job.broker.current_epoch() > epoch and job.broker.depths().committed_step >= 8 + seed)
        before, pointer = len(job.lines()), files_of_pointer(job)
        zombie.send_signal(signal.SIGCONT)
        text = zombie.communicate(timeout=240)[0]
        assert zombie.returncode == 75, text
        assert "newer learner" in text and "Traceback" not in text
        assert all(Path(path).read_bytes() == data for path, data in pointer.items())
        assert len(job.lines()) >= before
        job.until(job.broker.finished)
        job.wait()
        settled(job, 40)
        assert job.broker.audit().trained_completions == 40 * 6 * 4
    finally:
        for process in [zombie, *job.processes]:
            process.kill()
            process.wait()
        job.broker.close()


@pytest.mark.slow
def test_a_damaged_checkpoint_names_the_command_that_goes_back_and_it_works(job: Job) -> None:
    job.start()
    job.until(lambda: job.broker.depths().committed_step >= 6)
    job.processes[0].send_signal(signal.SIGKILL)
    job.processes.pop().wait()
    newest = job.run / "checkpoints" / job.broker.audit().checkpoint
    shard = next(newest.glob("__0_*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    done = job.broker.depths().committed_step
    assert any(shard.name in problem for problem in account(job.broker, job.config, deep=True).problems)  # type: ignore
    job.start()
    text = job.processes.pop().communicate(timeout=240)[0]
    assert f"{newest}: {shard.name}: expected" in text
    older = max(step for step in job.broker.checkpoints() if step < done)
    assert f"`sieve resume CONFIG --from {older}`" in text

    body = json.loads(job.file.read_text()) | {"broker": {"url": job.url, "lease_seconds": 1.5}}
    config = Config.model_validate(body)
    assert list(checkpoints(config)) == [0, *job.broker.checkpoints()]
    with pytest.raises(RunConflict, match=rf"step 1 is no committed checkpoint that is kept; these are: 0, {older}"):
        roll_back(config, 1)
    with pytest.raises(CheckpointCorrupt, match=shard.name):
        roll_back(config, done)
    time.sleep(1.6)  # the killed learner's lease
    said = roll_back(config, older)
    untrained = (done - older) * 6
    assert said.startswith(f"back at step {older} of {done}: {untrained} groups will be sampled and trained again")
    job.start()
    job.until(job.broker.finished)
    job.wait()
    settled(job, 8)
    assert job.broker.audit().rolled_back == untrained
    assert [line["version"] for line in job.lines("eval.jsonl")][-1] == job.broker.version()


@pytest.mark.slow
def test_a_stopped_learner_commits_what_it_has_learned_and_resumes_there(job: Job) -> None:
    job.start()
    job.until(lambda: len(job.lines()) >= 2)
    job.processes[0].send_signal(signal.SIGTERM)
    job.wait()
    done = len(job.lines())
    assert job.broker.depths().committed_step == done
    job.start()
    job.until(job.broker.finished)
    job.wait()
    settled(job, 8)


@pytest.mark.slow
def test_a_fixed_z_is_the_pass_rate_that_came_with_the_prompt(tmp_path: Path, redis_url: str) -> None:
    job = Job(tmp_path, redis_url, schedule={"steps": 2}, learner={"partition": {"mode": "fixed"}})
    train = tmp_path / "train.jsonl"
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    train.write_text("".join(json.dumps(row | {"pass_rate": 0.25}) + "\n" for row in rows))
    try:
        job.start()
        job.until(job.broker.finished)
        job.wait()
        assert [line["z_mean"] for line in job.lines()] == pytest.approx([0.25, 0.25])
    finally:
        for process in job.processes:
            process.kill()
            process.wait()
        job.broker.close()


@pytest.mark.slow
def test_two_ranks_train_a_run_together(job: Job) -> None:
    job.start(ranks=2)
    job.until(job.broker.finished)
    job.wait()
    settled(job, 8)
    assert pass_probability(job.run / "model") > pass_probability(job.config.model.path) + 0.05


@pytest.mark.slow
def test_two_ranks_stop_together_and_one_rank_goes_on_from_their_checkpoint(job: Job) -> None:
    job.start(ranks=2)
    job.until(lambda: len(job.lines()) >= 2)
    job.processes[1].send_signal(signal.SIGTERM)  # not the one that decides
    job.wait()
    job.start()
    job.until(job.broker.finished)
    job.wait()
    settled(job, 8)


@pytest.mark.slow
def test_metrics_endpoint_shows_the_step(job: Job) -> None:
    job.start()
    job.until(lambda: len(job.lines()) >= 2)
    address = next(heartbeat.metrics_url for heartbeat in job.broker.services() if heartbeat.role == "learner")
    text = urllib.request.urlopen(address, timeout=5).read().decode()
    for series in (
        "sieve_up 1", 'sieve_learner_ess_ratio{weight="rho_alpha"}', "sieve_learner_partition_mean",
        "sieve_learner_truncated_ratio", "sieve_learner_staleness_versions_bucket",
        'sieve_learner_step_seconds_count{part="backward"}', "sieve_learner_mismatch_max_nats",
    ):  # fmt: skip
        assert series in text
    assert float(re.search(r"^sieve_learner_step (\S+)", text, re.MULTILINE)[1]) >= 1  # type: ignore[index]


@pytest.mark.slow
def test_a_second_learner_does_not_take_a_run_from_a_live_one_and_changes_nothing(job: Job) -> None:
    job.start()
    job.until(lambda: len(job.lines()) >= 1)
    spec, body = job.broker.run_spec(fresh=True), job.file.read_text()
    tree = json.loads(body)
    tree["schedule"] |= {"steps": 80, "max_staleness": 9}
    job.file.write_text(json.dumps(tree))
    job.start()
    intruder = job.processes.pop()
    deadline = time.monotonic() + 240
    while intruder.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)  # the first goes without work, so that it is still alive when the second gives up
    assert intruder.returncode == 75
    assert "learner" in intruder.communicate()[0].lower()
    assert job.broker.run_spec(fresh=True) == spec and job.broker.current_epoch() == 1
    assert not (job.run / "changes.jsonl").exists()
    job.until(job.broker.finished)
    job.wait()
    settled(job, 8)


@pytest.mark.slow
def test_a_change_on_resume_is_recorded_with_its_step_or_refused(job: Job) -> None:
    job.start()
    job.until(lambda: job.broker.depths().committed_step >= 3)
    job.processes[0].send_signal(signal.SIGTERM)
    job.wait()
    done, body = job.broker.depths().committed_step, json.loads(job.file.read_text())
    spec = job.broker.run_spec(fresh=True)
    body["learner"]["objective"] = {"name": "alpha_dpg", "alpha": 0.25}
    job.file.write_text(json.dumps(body))
    job.start()
    refused = job.processes.pop()
    text = refused.communicate(timeout=240)[0]
    assert refused.returncode == 65 and "learner.objective.alpha = 0.25, in the run 0.5" in text, text
    assert job.broker.run_spec(fresh=True) == spec and not (job.run / "changes.jsonl").exists()
    del body["learner"]["objective"]
    body["learner"]["optimizer"] = {"lr": 0.01}
    job.file.write_text(json.dumps(body))
    job.start()
    job.until(job.broker.finished)
    job.wait()
    settled(job, 8)
    (change,) = job.lines("changes.jsonl")
    assert {name: change[name] for name in ("step", "key", "was", "now")} == {
        "step": done, "key": "learner.optimizer.lr", "was": 0.02, "now": 0.01,
    }  # fmt: skip
    assert [line["lr"] for line in job.lines()] == [0.02] * done + [0.01] * (8 - done)


@pytest.mark.slow
def test_another_model_under_the_same_run_name_is_refused(job: Job) -> None:
    job.start()
    job.until(lambda: job.broker.depths().opened)
    job.processes[0].send_signal(signal.SIGTERM)
    job.wait()
    save_model(job.config.model.path, seed=9)
    job.start()
    text = job.processes.pop().communicate(timeout=240)[0]
    assert "choose another run.name" in text
