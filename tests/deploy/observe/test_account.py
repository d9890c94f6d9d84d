"""The account of a run: a true one has no problem, and every way in which a run can contradict itself is named.

The run is made by hand on a real Redis, with the files that a learner writes. Each case then does what a replaced
learner, a damaged disk or a lost write would do; the broker's own counters stay as they are.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from broker.queue.prompt_order import prompt_of
from broker.queue.state import Epoch, VersionName
from broker.settings import BrokerSettings
from broker.weights.directory import DirectoryStore
from deploy.cli.main import app
from deploy.config.load import load
from deploy.observe.account import account
from deploy.rundir.schema import mark_schema
from learner.train.partition import Statistics
from tests.broker.builders import EveryRole, judge_all, offer_all, prompts, spec

STEPS, GROUPS, SIZE = 3, 2, 2


class Made:
    """A run of three steps, committed after the second and the third."""

    def __init__(self, config: Any, url: str) -> None:
        self.config, self.path = config, config.run.path
        self.broker = EveryRole.connect(BrokerSettings(connect_seconds=5), config.run, url=url)
        self.weights = DirectoryStore(self.path / "weights")
        self.spec = spec(
            steps=STEPS, groups_per_step=GROUPS, group_size=SIZE, max_staleness=1, weights=str(self.weights.path)
        )
        self.epoch: Epoch = self.broker.begin("learner")
        self.broker.open_run(self.epoch, self.spec, prompts(5), [])
        self.trained: Counter[int] = Counter()
        mark_schema(self.path)
        self.publish(0)
        for step in range(1, STEPS + 1):
            self.train(step)
            self.publish(step)
            if step > 1:
                self.commit(step)

    def publish(self, step: int) -> None:
        name = VersionName(step, self.epoch.number)
        (self.weights.begin(name) / "model.safetensors").write_bytes(bytes([step]) * 100)
        self.broker.publish(self.epoch, step, step, self.weights.publish(name).identity)

    def train(self, step: int) -> None:
        offer_all(self.broker, "a", self.broker.take("a", 100).tickets, self.broker.version())
        judge_all(self.broker)
        group_ids = self.broker.lease(self.epoch, step, GROUPS)
        assert group_ids is not None
        for group_id in group_ids:
            self.trained[prompt_of(group_id, self.spec.seed, self.spec.train_prompts)] += SIZE
        self.write_line(step)

    def write_line(self, step: int, completions: int = GROUPS * SIZE) -> None:
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "version": step - 1, "time": 0.0, "completions": completions}) + "\n")

    def z(self) -> dict[int, bytes]:
        return {prompt: Statistics(count, 0.0, 0.0).pack() for prompt, count in self.trained.items()}

    def commit(self, step: int) -> None:
        name = f"step-{step:08d}-e{self.epoch.number:04d}"
        self.manifest(name, step)
        self.broker.commit(self.epoch, step, name, self.z(), keep=2)

    def manifest(self, name: str, step: int, fingerprint: str = "f" * 64) -> None:
        directory = self.path / "checkpoints" / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "manifest.json").write_text(json.dumps({"step": step, "fingerprint": fingerprint}))

    def set(self, key: str, field: str, value: Any) -> None:
        self.broker._redis.hset(self.broker._key(key), field, value)

    def problems(self) -> list[str]:
        return account(self.broker, self.config, deep=False).problems


@pytest.fixture
def run(tree: dict[str, Any], write: Callable[[Any], Path], redis_url: str) -> Iterator[Made]:
    made = Made(load(write({**tree, "broker": {"url": redis_url}}), environment={}), redis_url)
    yield made
    made.broker.close()


def again(run: Made) -> None:
    """Groups of the last step are in the weights twice: a learner adopted a checkpoint that nobody had committed."""
    for prompt in list(run.trained):
        run.trained[prompt] *= 2
    for prompt, data in run.z().items():
        run.set("z", str(prompt), data)


def other_prompt(run: Made) -> None:
    """One group trained twice and another not at all: the sums agree, the prompts do not."""
    low, high = sorted(run.trained, key=lambda prompt: run.trained[prompt])[:2]
    run.trained[low] -= SIZE
    run.trained[high] += SIZE
    for prompt, data in run.z().items():
        run.set("z", str(prompt), data)


def overwrite(run: Made, version: int) -> None:
    """Another learner's files under the published name."""
    name = VersionName(version, run.epoch.number)
    run.weights._remove(name)
    (run.weights.begin(name) / "model.safetensors").write_bytes(b"of another learner")
    run.weights.publish(name)


def without(run: Made, step: int) -> None:
    lines = (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run.path / "metrics.jsonl").write_text("".join(lines[: step - 1] + lines[step:]))


def evaluated(run: Made, version: int, step: int) -> None:
    (run.path / "eval.jsonl").write_text(json.dumps({"version": version, "step": step}) + "\n")


CASES: dict[str, tuple[Callable[[Made], object], str]] = {
    "trained twice": (again, "Z holds 24 samples, but 12 completions are committed"),
    "trained twice and not at all": (other_prompt, r"Z of prompt \d holds 4 samples, but its 1 groups have 2"),
    "a line lost": (lambda run: without(run, 2), "metrics.jsonl lacks 1 of 3 committed steps, 2 first"),
    "a line twice": (lambda run: run.write_line(2), "metrics.jsonl has 1 steps more than once, 2 first"),
    "a step of other groups": (
        lambda run: (without(run, 3), run.write_line(3, 5)),
        "metrics.jsonl has 13 trained completions, but 12",
    ),
    "another checkpoint": (
        lambda run: run.manifest(run.broker.audit().checkpoint, 2),
        "is of step 2 of the run ffffffffffff, not 3 of this",
    ),
    "a checkpoint of another run": (
        lambda run: run.manifest(run.broker.audit().checkpoint, 3, "0" * 64),
        "is of step 3 of the run 000000000000",
    ),
    "no checkpoint": (
        lambda run: (run.path / "checkpoints" / run.broker.audit().checkpoint / "manifest.json").unlink(),
        "cannot be read",
    ),
    "an unnamed checkpoint": (
        lambda run: run.set("state", "checkpoint", "step-00000003-e0009"),
        "names 'step-00000003-e0009', the kept ones are",
    ),
    "weights overwritten": (lambda run: overwrite(run, 3), r"version v00000003-e0001 has the hash \w{12}…, published"),
    "older weights overwritten": (lambda run: overwrite(run, 1), "version v00000001-e0001 has the hash"),
    "weights gone": (
        lambda run: run.weights.keep([VersionName(2, 1)], 1),
        "version v00000003-e0001, which the pointer names, is not in",
    ),
    "the pointer went back": (
        lambda run: run.set("state", "version", 2),
        "the pointer is on version 2, but its history ends with 3",
    ),
    "a version lost steps": (
        lambda run: run.set("versions", "3", "1 1 " + run.broker.published(3).identity),
        "version 3 has 1 steps, fewer than version 2",
    ),
    "a commit more": (lambda run: run.set("state", "committed", 8), "8 groups counted as committed, but 6 marked so"),
    "a step more": (lambda run: run.set("state", "committed_step", 4), "6 groups committed, but 4 steps take 8"),
    "a tombstone less": (
        lambda run: run.broker._redis.setbit(run.broker._key("done"), 0, 0),
        "6 groups counted as committed, but 5 marked so",
    ),
    "a duplicate": (lambda run: run.set("state", "duplicates", 1), "1 groups committed twice"),
    "an evaluation of other weights": (lambda run: evaluated(run, 3, 2), "eval.jsonl has version 3 of step 2"),
    "an evaluation of no version": (lambda run: evaluated(run, 7, 3), "eval.jsonl has version 7 of step 3"),
}


def test_a_true_account_has_no_problem_and_says_where_the_run_stands(run: Made) -> None:
    evaluated(run, 3, 3)
    run.write_line(4)  # a step that is trained and not committed yet
    found = account(run.broker, run.config, deep=False)
    assert found.problems == []
    plain = found.plain()
    assert (plain["lost"], plain["duplicates"], plain["committed"], plain["committed_step"]) == (0, 0, 6, 3)
    assert plain["checkpoint"] == "step-00000003-e0001" and plain["problems"] == []


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_contradicts_itself_fails_the_audit(run: Made, case: str) -> None:
    spoil, message = CASES[case]
    spoil(run)
    found = run.problems()
    assert any(re.search(message, problem) for problem in found), found


def test_the_command_fails_loudly_with_the_problem_on_its_error_output(run: Made) -> None:
    where = str(run.path.parents[1] / "config.yaml")
    done = CliRunner().invoke(app, ["audit", where], standalone_mode=False)
    assert done.return_value == 0, done.output
    again(run)
    done = CliRunner().invoke(app, ["audit", where], standalone_mode=False)
    assert done.return_value == 65
    assert "sieve: Z holds 24 samples" in done.output


def test_after_a_rollback_the_account_is_true_again(run: Made) -> None:
    run.broker.rollback(run.epoch, 2, {})
    (run.path / "metrics.jsonl").write_text("".join((run.path / "metrics.jsonl").read_text().splitlines(True)[:2]))
    run.trained.clear()
    for order in run.broker.committed_numbers():
        run.trained[prompt_of(f"{order // 5}:{order % 5}", run.spec.seed, 5)] += SIZE
    run.broker.rollback(run.epoch, 2, run.z())
    assert run.problems() == []
