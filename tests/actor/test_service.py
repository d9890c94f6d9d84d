"""The sampling service over a real Redis, with a real model directory, published versions, stops and kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from actor.service import ActorService
from actor.weights.checks import VersionFiles
from broker.queue.state import Epoch, Member, RunSpec, VersionName
from broker.queue.wire import Verdict
from broker.settings import BrokerSettings, RunSettings, WeightsSettings
from broker.weights.directory import DirectoryStore
from broker.weights.reader import version_path
from tests.actor.actor_process import Tree, tree
from tests.actor.tiny_llama import EOS, llama, ragged, reference
from tests.broker.builders import EveryRole

VOCABULARY = 24


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory) -> Path:
    """A Hugging Face model directory with a tiny Llama and a word-level tokenizer of the same size."""
    path = tmp_path_factory.mktemp("model")
    words = {"<pad>": 0, "<s>": 1, "</s>": EOS} | {f"w{token}": token for token in range(3, VOCABULARY)}
    raw = Tokenizer(WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>").save_pretrained(
        path
    )
    llama(0, vocabulary=VOCABULARY).save_pretrained(path)
    return path


class Run:
    """The other services: a learner that opens the run and publishes, and a verifier that passes everything."""

    def __init__(self, url: str, directory: Path, **change: object) -> None:
        settings = BrokerSettings(lease_seconds=1.0, connect_seconds=10.0)
        self.broker = EveryRole.connect(settings, RunSettings(name="test"), url=url)
        self.weights = DirectoryStore(directory / "weights")
        self.prompts = ragged(40, seed=3, vocabulary=VOCABULARY)
        spec = {
            "fingerprint": "f" * 64,
            "seed": 7,
            "steps": 6,
            "group_size": 4,
            "groups_per_step": 8,
            "publish_every": 1,
            "max_staleness": 50,
            "max_queued_bytes": 1 << 26,
            "max_new_tokens": 12,
            "train_prompts": 40,
            "eval_prompts": 10,
            "eos_token_ids": (EOS,),
            "weights": str(directory / "weights"),
        }
        self.spec = RunSpec.model_validate(spec | change)
        self.epoch: Epoch = self.broker.begin("learner")
        self.broker.open_run(self.epoch, self.spec, self.prompts, self.prompts[: self.spec.eval_prompts])
        self.step = 0

    def files(self, version: int) -> Path:
        llama(version + 1, vocabulary=VOCABULARY).save_pretrained(self.weights.begin(self.name(version)))
        self.weights.publish(self.name(version), {})
        return version_path(self.weights.path, self.name(version))

    def name(self, version: int) -> VersionName:
        return VersionName(version, self.epoch.number)

    def publish(self, version: int) -> None:
        self.files(version)
        self.point(version)

    def point(self, version: int) -> None:
        identity = self.weights.manifest(self.name(version)).identity
        self.broker.publish(self.epoch, version, self.step, identity)

    def judge(self) -> int:
        verdict = Verdict(outcome="pass", reason="right", seconds=0.0, verifier="none/1")
        works = self.broker.receive("none", "v", 1000, 0.05)
        self.broker.judge("none", "v", [(work, verdict) for work in works])
        return len(works)

    def train(self) -> list[Member] | None:
        """The members of the next step's groups, committed; None while they are not ready."""
        self.judge()
        group_ids = self.broker.lease(self.epoch, self.step + 1, self.spec.groups_per_step)
        if group_ids is None:
            return None
        members = [member for group in self.broker.groups(group_ids) for member in group.members]
        self.step += 1
        self.broker.commit(self.epoch, self.step, f"step-{self.step}")
        return members

    def check(self, members: list[Member]) -> None:
        """Every token's recorded log-prob is that of the version its span names."""
        models: dict[int, torch.nn.Module] = {}
        for member in members:
            one = member.completion
            for version, start, end in one.spans:
                model = models.setdefault(version, llama(version + 1, vocabulary=VOCABULARY))
                expected = reference(model, self.prompts[one.prompt], one.ids)
                np.testing.assert_allclose(one.sampler_logprobs[start:end], expected[start:end], atol=1e-4)
            assert one.text == " ".join(f"w{token}" for token in one.ids if token > EOS)


def eventually(condition: Callable[[], object], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.02)


@contextmanager
def serving(config: Tree, url: str, kind: type[ActorService] = ActorService) -> Iterator[ActorService]:
    """Run an actor in a thread of this process; it must end with exit code 0."""
    service = kind(config, url=url)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(service.run()))
    thread.start()
    try:
        yield service
    finally:
        service.request_stop()
        thread.join(60)
    assert codes == [0]


def value(service: ActorService, name: str, **labels: str) -> float:
    found = service.registry.get_sample_value(name, labels)
    assert found is not None, name
    return found


@pytest.mark.slow
def test_groups_are_complete_and_versions_published_meanwhile_are_loaded(redis_url, tmp_path, model_path):
    run = Run(redis_url, tmp_path)
    members: list[Member] = []
    with serving(tree(tmp_path, model_path), redis_url) as service:
        run.publish(0)
        while run.step < run.spec.steps:
            step = run.train()
            if step is not None:
                members += step
                if run.step < run.spec.steps:
                    run.publish(run.step)
        run.broker.finish(run.epoch)
        eventually(service.finished.is_set)
        assert value(service, "sieve_actor_tokens_total") >= sum(len(one.completion.ids) for one in members)
        for part in ("fetch", "verify", "load", "pause"):
            assert value(service, "sieve_actor_update_seconds_count", part=part) >= 2
    groups = {member.completion.group_id for member in members}
    assert len(groups) == 48
    assert {(one.completion.group_id, one.completion.idx) for one in members} == {
        (g, i) for g in groups for i in range(4)
    }
    assert len({version for one in members for version, _, _ in one.completion.spans}) > 1
    run.check(members)
    audit = run.broker.audit()
    assert (audit.lost, audit.open) == (0, 0)


@pytest.mark.slow
def test_an_evaluation_is_sampled_with_exactly_its_version_even_after_newer_ones_are_loaded(
    redis_url, tmp_path, model_path
):
    run = Run(redis_url, tmp_path, groups_per_step=2, steps=10**6)
    with serving(tree(tmp_path, model_path), redis_url) as service:
        run.publish(0)
        run.publish(3)
        eventually(lambda: run.train() and service.values.get("version") == 3)
        run.broker.request_eval(run.epoch, 0, 10, 6)
        members: list[Member] = []
        eventually(lambda: run.judge() + 1 and len(run.broker.eval_ready(0)) == 10)
        for group in run.broker.groups(run.broker.eval_ready(0)):
            members += group.members
        assert len(members) == 60
        assert {one.completion.spans for one in members} == {((0, 0, len(one.completion.ids)),) for one in members}
        run.check(members)
        # Afterwards training continues with the newest version.
        eventually(lambda: run.train() and service.values.get("version") == 3)


@pytest.mark.slow
def test_missing_and_corrupt_weights_are_named_and_never_sampled_from(redis_url, tmp_path, model_path):
    run = Run(redis_url, tmp_path, groups_per_step=2, steps=10**6)
    run.publish(0)
    away = run.weights.path.rename(tmp_path / "away")  # as on a machine without the mount
    with serving(tree(tmp_path, model_path), redis_url) as service:
        eventually(lambda: service.heartbeat().trouble == "weights_missing")
        ready, why = service._is_ready()
        assert not ready and "weights_missing: version 0" in why
        away.rename(run.weights.path)
        eventually(run.train)
        assert service._is_ready()[0]
        path = run.files(1) / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(bytes(data))
        run.point(1)
        eventually(lambda: value(service, "sieve_actor_weights_failures_total", reason="corrupt") >= 2)
        assert value(service, "sieve_actor_version") == 0
        assert service.heartbeat().trouble == "weights_corrupt" and not service._is_ready()[0]
        run.publish(2)
        eventually(lambda: run.train() and value(service, "sieve_actor_version") == 2)
        assert service._is_ready()[0]
        members: list[Member] = []
        while not any(one.completion.oldest == 2 for one in members):
            members += run.train() or []
        assert 1 not in {version for one in members for version, _, _ in one.completion.spans}
        run.check(members)
    logs = "".join(file.read_text() for file in (tmp_path / "test" / "logs").iterdir())
    assert "version 1 is corrupt, trying again; version 0 stays loaded" in logs
    assert "model.safetensors: expected sha256" in logs


class ChecksFirst(ActorService):
    """An actor that checks files before it loads them, like engines whose models live in other processes."""

    def setup(self) -> None:
        super().setup()
        self._engine.check = VersionFiles(self._actor_config.model.path, adapters=False).check  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", [ActorService, ChecksFirst])
@pytest.mark.slow
def test_weights_that_do_not_fit_are_named_and_never_sampled_from(redis_url, tmp_path, model_path, kind):
    run = Run(redis_url, tmp_path, groups_per_step=2, steps=10**6)
    with serving(tree(tmp_path, model_path), redis_url, kind) as service:
        run.publish(0)
        eventually(run.train)
        model = llama(2, vocabulary=VOCABULARY)
        model.model.norm.weight.data[1] = float("nan")
        model.save_pretrained(run.weights.begin(run.name(1)))
        run.weights.publish(run.name(1), {})
        run.point(1)
        eventually(lambda: value(service, "sieve_actor_weights_failures_total", reason="unusable") >= 2)
        assert value(service, "sieve_actor_version") == 0
        run.publish(2)
        eventually(lambda: run.train() and value(service, "sieve_actor_version") == 2)
    logs = "".join(file.read_text() for file in (tmp_path / "test" / "logs").iterdir())
    assert "version 1 is unusable, trying again; version 0 stays loaded" in logs
    assert "model.norm.weight has values that are not finite" in logs


@pytest.mark.slow
def test_a_stop_finishes_what_runs_and_releases_the_rest(redis_url, tmp_path, model_path):
    run = Run(redis_url, tmp_path)
    with serving(tree(tmp_path, model_path), redis_url) as service:
        run.publish(0)
        eventually(lambda: value(service, "sieve_actor_tokens_total") > 0)
    assert run.broker.depths().tickets == 0
    with serving(tree(tmp_path, model_path, grace_seconds=0), redis_url) as service:
        eventually(lambda: value(service, "sieve_actor_tokens_total") > 0)
    assert run.broker.depths().tickets == 0
    with serving(tree(tmp_path, model_path), redis_url):
        eventually(lambda: (run.train(), run.step == run.spec.steps)[1])
    assert run.broker.audit().lost == 0


@pytest.mark.slow
def test_tickets_issued_to_others_are_dropped_and_counted_and_every_group_comes_once(redis_url, tmp_path, model_path):
    run = Run(redis_url, tmp_path)
    with serving(tree(tmp_path, model_path), redis_url) as service:
        run.publish(0)
        while run.step < run.spec.steps:
            # As if this actor's lease had expired in the middle of sampling.
            run.broker.release(service.id, [f"{cycle}:{place}" for cycle in (0, 1) for place in range(40)])
            eventually(run.train)
        assert value(service, "sieve_actor_tickets_dropped_total", reason="stale") > 0
    audit = run.broker.audit()
    assert (audit.lost, audit.open, audit.committed) == (0, 0, 48)


def test_a_stop_before_the_run_is_opened_ends_at_once(redis_url, tmp_path, model_path):
    with serving(tree(tmp_path, model_path), redis_url) as service:
        eventually(lambda: service.heartbeat().waiting_on == "learner: the run is not opened yet")


def test_a_model_that_cannot_be_opened_ends_the_actor_with_one_line(redis_url, tmp_path, model_path, capfd):
    Run(redis_url, tmp_path)
    assert ActorService(tree(tmp_path, tmp_path / "nothing"), url=redis_url).run() == 65
    assert f"model.path = {tmp_path / 'nothing'}: not a Hugging Face model directory" in capfd.readouterr().err


@pytest.mark.slow
def test_with_a_cache_versions_arrive_as_deltas_and_are_sampled_exactly(redis_url, tmp_path, model_path):
    run = Run(redis_url, tmp_path)
    base = llama(1, vocabulary=VOCABULARY)

    def publish(version: int) -> None:
        """Publish a version that differs from the one before in a few weights, as a learner would."""
        with torch.no_grad():
            base.lm_head.weight[version] += 0.5 * version
        base.save_pretrained(run.weights.begin(run.name(version)))
        run.weights.publish(run.name(version), base=run.name(version - 1))
        run.point(version)

    publish(0)
    config = tree(tmp_path, model_path)
    config = config.model_copy(update={"weights": WeightsSettings(cache=tmp_path / "cache", delta=True)})
    with serving(config, redis_url) as service:
        eventually(lambda: run.train())
        publish(1)
        eventually(lambda: value(service, "sieve_actor_version") == 1)
        eventually(lambda: run.train())
        members: list[Member] = []

        def trained() -> bool:
            members.extend(run.train() or [])
            return any(version == 1 for one in members for version, _, _ in one.completion.spans)

        eventually(trained)
        source = lambda name: value(service, "sieve_actor_weights_bytes_total", source=name)  # noqa: E731
        assert source("copied") == run.weights.manifest(run.name(0)).bytes and source("kept") == 0
        assert 0 < source("delta") < 0.1 * source("copied")
        for part in ("fetch", "verify"):
            assert value(service, "sieve_actor_update_seconds_count", part=part) == 2
        assert value(service, "sieve_actor_weights_delta_fallbacks_total", reason="damaged") == 0
    assert [path.name for path in (tmp_path / "cache" / "test").glob("v*")] == ["v00000001-e0001"]
    for one in (member.completion for member in members):
        if {version for version, _, _ in one.spans} == {1}:
            np.testing.assert_allclose(
                one.sampler_logprobs, reference(base, run.prompts[one.prompt], one.ids), atol=1e-4
            )


@pytest.mark.slow
def test_killed_and_stopped_actors_lose_and_repeat_nothing(redis_url, tmp_path, model_path):
    run = Run(redis_url, tmp_path, steps=60)
    config = tree(tmp_path, model_path).model_dump_json()

    def start() -> subprocess.Popen[bytes]:
        root = Path(__file__).parents[2]
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("actor_process.py")), config, redis_url],
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        )

    run.publish(0)
    first, second = start(), start()
    try:
        eventually(lambda: run.train() and run.step >= 5, 90)
        first.kill()
        assert first.wait(10) == -signal.SIGKILL
        first = start()
        eventually(lambda: run.train() and run.step >= 12, 90)
        second.send_signal(signal.SIGTERM)
        assert second.wait(30) == 0
        members: list[Member] = []
        until = time.monotonic() + 90
        while run.step < run.spec.steps and time.monotonic() < until:
            step = run.train()
            if step and run.step % 10 == 0:
                run.publish(run.step // 10)
            members += step or []
        assert run.step == run.spec.steps
        run.check(members)
        run.broker.finish(run.epoch)
        assert first.wait(30) == 0
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
    audit = run.broker.audit()
    assert (audit.lost, audit.open, audit.committed) == (0, 0, 60 * 8)
