"""The vLLM engine receiving broadcasts over gloo from the learner's own sending side; over NCCL where there is one."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np
import pytest
import torch

pytest.importorskip("vllm.v1", reason="make test-vllm installs it")

from prometheus_client import CollectorRegistry

from actor.engine import ArgumentRefused
from actor.engines.factory import open_engine, open_receiver
from actor.weights.broadcast import BroadcastListener
from broker.queue.heartbeat import Heartbeat
from broker.queue.wire import Completion
from broker.settings import BrokerSettings, RunSettings, WeightsSettings
from broker.weights.broadcast import BroadcastCoordinator, Outcome, TransferBroken
from learner.weights.broadcast import BroadcastMetrics, open_broadcaster
from learner.weights.nccl_link import BroadcastUnavailable
from tests.actor.actor_process import tree
from tests.actor.tiny_llama import ragged, reference, ticket
from tests.broker.builders import EveryRole
from tests.vllm.served_llama import ARGUMENTS, EOS, MAX_NEW, VOCABULARY, drain, served_llama, spec

ACTOR = "actor-0"
TOLERANCE = 1e-4  # float32, per token


class Both:
    """A sending side and one vLLM engine on one run, each on its own connection."""

    def __init__(self, url: str, directory, model_path, broadcast: str, **parallel: int) -> None:
        weights = WeightsSettings(broadcast=broadcast, broadcast_seconds=120.0)
        config = tree(directory, model_path, engine="vllm", vllm={"arguments": ARGUMENTS | parallel}, max_batch=16)
        config = config.model_copy(update={"weights": weights})
        settings, run = BrokerSettings(lease_seconds=3600.0), RunSettings(name="test")
        self.learner, self.actor = (EveryRole.connect(settings, run, url=url) for _ in range(2))
        self.epoch = self.learner.begin("learner")
        self.learner.open_run(self.epoch, spec((EOS,), MAX_NEW), ragged(1, vocabulary=VOCABULARY), [])
        self.engine = open_engine(config, spec((EOS,), MAX_NEW), ACTOR)
        self.actor.heartbeat(Heartbeat(id=ACTOR, role="actor", phase="sampling"))
        log = logging.getLogger("sieve.test")
        receiver = open_receiver(config, self.engine, log)
        assert receiver is not None and receiver.ranks == (2 if parallel else 1)
        self.outcomes: list[str] = []
        self.done: list[Completion] = []
        self.listener = BroadcastListener(BroadcastCoordinator(self.actor), ACTOR, receiver, log, self.outcomes.append)
        self.metrics = BroadcastMetrics(CollectorRegistry())
        wait = lambda reason, seconds: bool(time.sleep(seconds))  # noqa: E731
        broadcaster = open_broadcaster(
            weights,
            BroadcastCoordinator(self.learner),
            self.metrics,
            log,
            wait,
            pack_bytes=20_000,
            join_seconds=60.0,
        )
        assert broadcaster is not None
        self.broadcaster = broadcaster
        self.listener.step("")  # it is known from now on

    def send(self, version: int, tensors: dict[str, torch.Tensor]) -> Outcome:
        """Broadcast on a thread while the engine's thread, this one, samples and looks."""
        found: list[Outcome] = []
        sender = threading.Thread(
            target=lambda: found.append(self.broadcaster.send(self.epoch, version, tensors)), daemon=True
        )
        sender.start()
        until = time.monotonic() + 300
        while sender.is_alive():
            assert time.monotonic() < until
            self.listener.step("")
            self.done += self.engine.poll(0.01)
        return found[0]


@pytest.fixture(
    scope="module",
    params=[{}, {"tensor_parallel_size": 2}, {"data_parallel_size": 2}],
    ids=lambda parallel: next(iter(parallel), "alone"),
)
def both(request, redis_server, tmp_path_factory, model_path):
    if torch.cuda.is_available():
        pytest.skip("vLLM runs on a GPU here, gloo is for CPUs")
    found = Both(redis_server.url, tmp_path_factory.mktemp("broadcast"), model_path, "gloo", **request.param)
    yield found
    found.broadcaster.close()
    found.engine.close()


class Cut(dict[str, torch.Tensor]):
    """Tensors of which one cannot be read: the sender fails in the middle."""

    def __init__(self, tensors, name: str, action) -> None:
        super().__init__(tensors)
        self.name, self.action = name, action

    def __getitem__(self, name: str) -> torch.Tensor:
        if name == self.name:
            self.action()
        return super().__getitem__(name)


def tensors(model) -> dict[str, torch.Tensor]:
    return {name: one.detach() for name, one in model.state_dict().items()}


def test_running_completions_go_on_with_a_version_that_was_broadcast(both, model_path, versions):
    models = [served_llama(0), *versions[0]]
    both.engine.load(0, model_path)
    prompts = ragged(6, vocabulary=VOCABULARY)
    both.done = []
    switched = 0
    for version in (1, 2):
        for question in prompts:
            both.engine.submit(ticket(question.index + 100 * version, n=8, version=version - 1), question)
        both.done += both.engine.poll(0.02)
        outcome = both.send(version, tensors(models[version]))
        assert outcome.received == (ACTOR,) and not outcome.missed
        assert both.engine.version == version
        both.done += drain(both.engine)
    assert len(both.done) == 2 * 6 * 8
    for one in both.done:
        question = prompts[one.prompt % 100]
        switched += len(one.spans) > 1
        for version, start, end in one.spans:
            expected = reference(models[version], question, one.ids)
            np.testing.assert_allclose(one.sampler_logprobs[start:end], expected[start:end], atol=TOLERANCE)
    for question in prompts:  # and all that comes after is the new one's alone
        both.engine.submit(ticket(question.index + 300, n=2, version=2), question)
    for one in drain(both.engine):
        assert one.spans == ((2, 0, len(one.ids)),)
        expected = reference(models[2], prompts[one.prompt % 100], one.ids)
        np.testing.assert_allclose(one.sampler_logprobs, expected, atol=TOLERANCE)
    assert both.metrics.groups._value.get() == 1
    assert switched, "no completion was running when weights arrived: lengthen them"


def test_a_broadcast_that_breaks_off_leaves_the_old_weights_whole_and_the_next_one_arrives(both, model_path, versions):
    models = versions[0]
    both.done = []
    both.engine.load(3, model_path)
    question = ragged(1, vocabulary=VOCABULARY)[0]
    name = list(tensors(models[0]))[-2]
    both.broadcaster.close()

    def fail() -> None:
        both.broadcaster.close()  # as when the sender's process is killed: its connections go down in the middle
        raise TransferBroken("cut off")

    outcome = both.send(4, Cut(tensors(models[0]), name, fail))
    assert outcome.missed[ACTOR][0] == "broken"
    assert both.outcomes[-1] == "broken"
    assert both.engine.version == 3
    both.engine.submit(ticket(1, n=4, version=3), question)
    for one in drain(both.engine):
        expected = reference(served_llama(0), question, one.ids)
        np.testing.assert_allclose(one.sampler_logprobs, expected, atol=TOLERANCE)
        assert one.spans == ((3, 0, len(one.ids)),)
    assert both.send(5, tensors(models[1])).received == (ACTOR,)
    both.engine.submit(ticket(2, n=4, version=5), question)
    for one in drain(both.engine):
        expected = reference(models[1], question, one.ids)
        np.testing.assert_allclose(one.sampler_logprobs, expected, atol=TOLERANCE)
        assert one.spans == ((5, 0, len(one.ids)),)
    # Files come in as before.
    both.engine.load(6, model_path)
    both.engine.submit(ticket(3, n=4, version=6), question)
    for one in drain(both.engine):
        expected = reference(served_llama(0), question, one.ids)
        np.testing.assert_allclose(one.sampler_logprobs, expected, atol=TOLERANCE)


def test_nccl_is_refused_where_there_is_no_gpu(tmp_path, model_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    weights = WeightsSettings(broadcast="nccl")
    with pytest.raises(BroadcastUnavailable, match="PyTorch sees no CUDA device"):
        open_broadcaster(weights, None, None, None, None)
    config = tree(tmp_path, model_path, engine="vllm").model_copy(update={"weights": weights})
    with pytest.raises(ArgumentRefused, match="vLLM runs on a CPU"):
        open_engine(config, spec((EOS,), MAX_NEW), ACTOR)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL needs a GPU for the learner and one for the engine")
def test_the_same_over_nccl(redis_url, tmp_path, model_path, versions, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # the engine's processes; this one has its own already
    torch.cuda.set_device(0)
    here = Both(redis_url, tmp_path, model_path, "nccl")
    try:
        here.engine.load(0, model_path)
        question = ragged(1, vocabulary=VOCABULARY)[0]
        for version in (1, 2):
            assert here.send(version, tensors(versions[0][version - 1])).received == (ACTOR,)
            here.engine.submit(ticket(version, n=4, version=version), question)
            for one in drain(here.engine):
                expected = reference(versions[0][version - 1], question, one.ids)
                np.testing.assert_allclose(one.sampler_logprobs, expected, atol=1e-3)
        assert here.metrics.groups._value.get() == 1
    finally:
        here.broadcaster.close()
        here.engine.close()
