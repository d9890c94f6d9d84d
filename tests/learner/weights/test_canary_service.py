"""The learner process and actors of which one is broken: how a run stops, and a run that has nothing to learn."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actor.engines.torch import weights as torch_weights
from actor.engines.torch.engine import TorchEngine
from actor.service import ActorService
from actor.settings import ActorSettings
from broker.errors import EX_MISMATCH
from broker.queue.wire import Verdict
from broker.settings import WeightsSettings
from broker.weights.canary import Canaries
from learner.settings import LearnerConfig
from tests.broker.builders import EveryRole
from tests.learner.learner_rig import ROOT, save_model, save_prompts
from tests.ports import hold_port

RUNNER = Path(__file__).parents[1] / "run_learner.py"


class Tree(LearnerConfig):
    actor: ActorSettings = ActorSettings(max_batch=32)
    weights: WeightsSettings = WeightsSettings()


class Job:
    """A learner process, actors in threads of this one, and the test as verifier."""

    def __init__(self, path: Path, url: str, ranks: int = 1, *, lr: float = 0.02, **schedule: Any) -> None:
        body: dict[str, Any] = {
            "run": {"name": "job", "directory": str(path / "runs"), "seed": 3},
            "broker": {"lease_seconds": 10},
            "model": {"path": str(save_model(path / "base"))},
            "data": {"train": str(save_prompts(path / "train.jsonl", 40))},
            "sampling": {"group_size": 4, "max_new_tokens": 6},
            "schedule": {"steps": 30, "groups_per_step": 6, "checkpoint_every": 2, "max_staleness": 1} | schedule,
            "evaluation": {"base": False},
            "learner": {"optimizer": {"lr": lr}, "threads": 1, "device": "cpu"},
        }
        file = path / "config.json"
        file.write_text(json.dumps(body))
        self.config, self.url = Tree.model_validate(body), url
        self.run = self.config.run.path
        self.broker = EveryRole.connect(self.config.broker, self.config.run, url=url)
        self.learners = []
        port = str(hold_port())
        for rank in range(ranks):
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            if ranks > 1:
                environment |= {
                    "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                }  # fmt: skip
            command = [sys.executable, str(RUNNER), str(file), url]
            self.learners.append(
                subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            )
        self.actors: list[tuple[ActorService, threading.Thread]] = []

    def act(self, service: type[ActorService], index: int = 0) -> None:
        actor = service(self.config, index=index, url=self.url)
        thread = threading.Thread(target=actor.run)
        thread.start()
        self.actors.append((actor, thread))
        # One after the other: transformers swaps methods of its classes while it opens a model, and two threads at once
        # would leave them swapped for the tests that follow.
        until = time.monotonic() + 300
        while not hasattr(actor, "_engine"):
            assert thread.is_alive() and time.monotonic() < until, "the actor has not opened its model"
            time.sleep(0.05)

    def judge_until_the_end(self, seconds: float = 300.0) -> list[int]:
        """Even answers pass; returns the learners' exit codes."""
        until = time.monotonic() + seconds
        while any(learner.poll() is None for learner in self.learners):
            assert time.monotonic() < until, f"the learner did not end within {seconds:g} s"
            if self.broker.run_spec(fresh=True) is None:
                time.sleep(0.1)
                continue
            works = self.broker.receive("even", "hand", 500, 0.1)
            self.broker.judge("even", "hand", [(work, _verdict(int(work.completion.ids[0]))) for work in works])
        return [learner.wait() for learner in self.learners]

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]

    def said(self) -> str:
        return "".join(learner.stdout.read() for learner in self.learners if learner.stdout)

    def close(self) -> None:
        for actor, _ in self.actors:
            actor.request_stop()
        for _, thread in self.actors:
            thread.join(60)
        for learner in self.learners:
            learner.kill()
            learner.wait()
        self.broker.close()


def _verdict(first: int) -> Verdict:
    outcome: Any = "pass" if first % 2 == 0 else "fail"
    return Verdict(outcome=outcome, reason=outcome, seconds=0.0, verifier="even/1", answer=str(first))


@pytest.fixture
def job(tmp_path: Path, redis_url: str) -> Iterator[Callable[..., Job]]:
    torch.set_num_threads(1)
    made: list[Job] = []

    def make(*arguments: Any, **options: Any) -> Job:
        made.append(Job(tmp_path, redis_url, *arguments, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


class SkipsTheHead(ActorService):
    """Its engine never takes over the output head."""

    def setup(self) -> None:
        super().setup()
        policy = self._engine._policy  # type: ignore[attr-defined]
        stale = re.compile("lm_head")

        def load(directory: Path) -> None:
            tensors, held = torch_weights.read(directory), policy._model.state_dict()
            kept = {name: held[name].clone() if stale.search(name) else tensor for name, tensor in tensors.items()}
            torch_weights.put(policy._model, kept, str(directory))

        policy.load = load


class TellsOtherLogProbs(ActorService):
    """Scores as it should, but what it says of its samples is not what it drew them with: a stale cache does that."""

    def setup(self) -> None:
        super().setup()
        engine = self._engine
        assert isinstance(engine, TorchEngine)
        compact = engine._completions

        def completions() -> Any:
            engine._ended = [(row, ids, np.minimum(scores - 0.05, 0)) for row, ids, scores in engine._ended]
            return compact()

        engine._completions = completions  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_one_broken_actor_among_healthy_ones_ends_the_run_and_is_named(job: Callable[..., Job], ranks: int) -> None:
    run = job(ranks)
    run.act(ActorService, 0)
    run.act(SkipsTheHead, 1)
    codes, text = run.judge_until_the_end(), run.said()
    assert codes == [EX_MISMATCH] * ranks, text
    assert (
        "tensor group lm_head:" in text and "actor-1-" in text and "actor-0-" not in text.split("differ by")[0][-200:]
    )
    audit = run.broker.audit()
    assert audit.lost == audit.duplicates == 0
    assert audit.committed % 6 == 0


@pytest.mark.slow
def test_log_probs_that_are_not_those_sampled_with_end_the_run_at_its_first_step(job: Callable[..., Job]) -> None:
    run = job()
    run.act(TellsOtherLogProbs)
    codes, text = run.judge_until_the_end(), run.said()
    assert codes == [EX_MISMATCH], text
    assert "what it sampled" in text and "the weights are right" in text and "prefix cache" in text
    assert run.broker.audit().committed == 0


@pytest.mark.slow
def test_without_learning_the_mismatch_stays_flat(job: Callable[..., Job]) -> None:
    """24 steps and versions at learning rate 0: all versions are the same weights, so nothing may drift. In lock-step
    each version is loaded before its step's samples, so that none of them goes unchecked."""
    run = job(lr=0.0, steps=24, max_staleness=0)
    run.act(ActorService)
    codes, text = run.judge_until_the_end(), run.said()
    assert codes == [0], text
    lines = run.lines()
    assert len(lines) == 24 and run.broker.version() >= 20
    means = np.array([line["mismatch_mean"] for line in lines])
    assert max(line["mismatch_max"] for line in lines) < 1e-4
    assert np.abs(np.mean(means[12:]) - np.mean(means[:12])) < 1e-5 + 4 * np.std(means)
    seen = [line["canary_max"] for line in lines if "canary_max" in line]
    assert seen and max(seen) < 1e-4
    scored = run.actors[0][0].registry.get_sample_value("sieve_actor_canary_seconds_count")
    assert scored is not None and scored >= 24, f"{scored} canaries scored of versions 0 … 23"
    canaries = Canaries(run.broker)
    reports = canaries.reports()
    assert reports
    for report in reports:
        canary = canaries.get(report.version)
        assert canary is not None and canary.difference(report.logprobs)[1] < 1e-4
    first = AutoModelForCausalLM.from_pretrained(run.config.model.path).state_dict()
    last = AutoModelForCausalLM.from_pretrained(run.run / "model").state_dict()
    assert all(torch.equal(first[name], last[name]) for name in first)
