"""Broadcasts of weights from a learner's rank 0 to actors, each in its own process, over gloo, with kills of both."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry

from broker.queue.state import Epoch, Member
from broker.queue.wire import Completion, Verdict
from broker.settings import BrokerSettings, RunSettings, WeightsSettings
from broker.weights.broadcast import BroadcastCoordinator, Outcome
from learner.weights.broadcast import Broadcaster, BroadcastMetrics, open_broadcaster
from tests.actor.actor_process import serve, tree
from tests.actor.test_service import VOCABULARY, Run, eventually, model_path, one_thread  # noqa: F401
from tests.actor.tiny_llama import llama
from tests.broker.builders import EveryRole

pytestmark = pytest.mark.slow

PATIENCE = 600.0
GLOO = WeightsSettings(broadcast="gloo", broadcast_seconds=60.0)
BROKER = BrokerSettings(lease_seconds=10.0, connect_seconds=30.0)
LAST = "model.layers.1.mlp.down_proj.weight"
FIRST = "model.embed_tokens.weight"
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["actor.engines.torch.engine", "actor.engines.torch.model", "transformers"])
"""Actors start from a process that has imported everything, which takes many times longer than anything else here."""


def tensors(version: int) -> dict[str, torch.Tensor]:
    """The weights of `version`, as `Run.check` knows them."""
    return {name: one.detach() for name, one in llama(version + 1, vocabulary=VOCABULARY).state_dict().items()}


def sending(broker: EveryRole) -> Broadcaster:
    def wait(reason: str, seconds: float) -> bool:
        time.sleep(seconds)
        return False

    coordinator, metrics = BroadcastCoordinator(broker), BroadcastMetrics(CollectorRegistry())
    log = logging.getLogger("sieve.test")
    made = open_broadcaster(GLOO, coordinator, metrics, log, wait, pack_bytes=4096, join_seconds=60.0)
    assert made is not None
    return made


def send_and_die(url: str, epoch: Epoch) -> None:
    """A learner that is killed in the middle of sending version 1."""
    broker = EveryRole.connect(BROKER, RunSettings(name="test"), url=url)
    sending(broker).send(epoch, 1, Watched(tensors(1), LAST, lambda: os.kill(os.getpid(), signal.SIGKILL)))


class Watched(dict[str, torch.Tensor]):
    """Tensors that call back when the one named is asked for: the broadcast is then at that point."""

    def __init__(self, tensors: dict[str, torch.Tensor], name: str, action: Callable[[], None]) -> None:
        super().__init__(tensors)
        self._name, self._action = name, action

    def __getitem__(self, name: str) -> torch.Tensor:
        if name == self._name:
            self._action()
        return super().__getitem__(name)


class Rig:
    """A learner's sending side in this process, and actors in others."""

    def __init__(self, url: str, directory: Path, model: Path) -> None:
        self.run = Run(url, directory, steps=10**6, groups_per_step=4, max_staleness=100_000, max_queued_bytes=1 << 30)
        self.run.broker = EveryRole.connect(BROKER, RunSettings(name="test"), url=url)
        self.run.epoch = self.run.broker.begin("learner")
        self.url = url
        self.config = tree(directory, model).model_copy(update={"weights": GLOO, "broker": BROKER}).model_dump_json()
        self.broadcaster = sending(self.run.broker)
        self.actors: list[BaseProcess] = []
        self.run.publish(0)

    def start(self, count: int) -> None:
        """Start `count` more actors and wait until they have loaded weights and can receive."""
        for _ in range(count):
            self.actors.append(PROCESSES.Process(target=serve, args=(self.config, self.url), daemon=True))
            self.actors[-1].start()
        alive = sum(actor.is_alive() for actor in self.actors)
        eventually(lambda: (self.judged(), len(self.ids()) == alive)[1], PATIENCE)

    def ids(self) -> dict[int, str]:
        """Living actors that have loaded weights: pid → id."""
        alive = {actor.pid for actor in self.actors if actor.is_alive()}
        heartbeats = [p for p in self.run.broker.services() if p.role == "actor" and p.pid in alive]
        return {p.pid: p.id for p in heartbeats if "version" in p.values}

    def id(self, actor: BaseProcess) -> str:
        return self.ids()[actor.pid or 0]

    def send(self, version: int, weights: dict[str, torch.Tensor] | None = None) -> Outcome:
        return self.broadcaster.send(self.run.epoch, version, weights or tensors(version))

    @property
    def groups(self) -> float:
        """Number of communicators built."""
        return self.broadcaster._metrics.groups._value.get()

    def judged(self) -> list[Completion]:
        """Judge the completions offered since the last call as passes; returns them in order."""
        works = self.run.broker.receive("none", "v", 500, 0.05)
        verdict = Verdict(outcome="pass", reason="right", seconds=0.0, verifier="none/1")
        self.run.broker.judge("none", "v", [(work, verdict) for work in works])
        return [work.completion for work in works]

    def sampled(self, version: int, actors: set[str]) -> None:
        """Wait until each of `actors` has sampled with `version`; log-probs must be exact, also across the change."""
        seen: set[str] = set()
        verdict = Verdict(outcome="pass", reason="right", seconds=0.0, verifier="none/1")

        def look() -> bool:
            found = self.judged()
            new = [one for one in found if one.spans[-1][0] == version]
            crossing = [one for one in new if len(one.spans) > 1]
            self.run.check([Member(one, verdict, None) for one in (*crossing[:10], *new[:10])])
            seen.update(one.actor for one in new)
            return seen >= actors

        eventually(look, PATIENCE)

    def counted(self, id: str, name: str, **labels: str) -> float:
        """The value of a metric from an actor's /metrics."""
        url = next(heartbeat.metrics_url for heartbeat in self.run.broker.services() if heartbeat.id == id)
        body = urllib.request.urlopen(url, timeout=30).read().decode()
        inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
        found = re.search(rf"^{name}{re.escape('{' + inside + '}') if inside else ''} (\S+)$", body, re.M)
        assert found, f"{name} {labels}"
        return float(found[1])


@contextmanager
def rig(url: str, directory: Path, model: Path) -> Iterator[Rig]:
    found = Rig(url, directory, model)
    try:
        yield found
    finally:
        for actor in found.actors:
            actor.kill()
            actor.join()
        found.broadcaster.close()


def test_versions_arrive_without_files_the_group_is_kept_and_a_joiner_rebuilds_it(redis_url, tmp_path, model_path):  # noqa: F811
    with rig(redis_url, tmp_path, model_path) as here:
        here.start(2)
        two = set(here.ids().values())
        for version in (1, 2):  # no files of these: what samples with them got them by broadcast
            assert set(here.send(version).received) == two
            here.sampled(version, two)
        assert here.groups == 1
        for id in two:
            assert here.counted(id, "sieve_actor_transfers_total", outcome="received") == 2
            assert here.counted(id, "sieve_actor_update_seconds_count", part="receive") == 2
        here.run.publish(2)  # the joiner reads files
        here.start(1)
        three = set(here.ids().values())
        for version in (3, 4):
            assert set(here.send(version).received) == three
            here.sampled(version, three)
        assert here.groups == 2
        # One leaves in good order: the next group is without it, and nobody is missed.
        leaving = here.actors[0]
        os.kill(leaving.pid or 0, signal.SIGTERM)
        leaving.join(PATIENCE)
        assert leaving.exitcode == 0
        found = here.send(5)
        assert len(found.received) == 2 and not found.missed
        here.sampled(5, set(found.received))
        assert here.groups == 3
        assert here.run.broker.audit().lost == 0


@pytest.mark.parametrize("at", [FIRST, LAST])
def test_a_receiver_that_is_killed_before_or_amid_the_broadcast_is_named_and_the_others_go_on(
    redis_url,
    tmp_path,
    model_path,  # noqa: F811
    at,
):
    with rig(redis_url, tmp_path, model_path) as here:
        here.start(3)
        everyone = set(here.ids().values())
        assert set(here.send(1).received) == everyone
        victim = here.actors[1]
        name = here.id(victim)

        def kill() -> None:
            victim.kill()
            victim.join()

        found = here.send(2, Watched(tensors(2), at, kill))
        assert found.missed[name][0] == "dead"
        survivors = everyone - {name}
        # A survivor may have had everything before the death was felt, and then has all of it.
        assert survivors == {*found.received, *(a for a, (cause, _) in found.missed.items() if cause == "broken")}
        here.run.publish(2)
        here.sampled(2, survivors)
        assert set(here.send(3).received) == survivors
        here.sampled(3, survivors)


def test_a_receiver_that_hangs_is_named_within_the_deadline_and_takes_part_again_when_it_wakes(
    redis_url,
    tmp_path,
    model_path,  # noqa: F811
):
    with rig(redis_url, tmp_path, model_path) as here:
        here.start(2)
        everyone = set(here.ids().values())
        assert set(here.send(1).received) == everyone
        sleeper = here.actors[0]
        name = here.id(sleeper)
        begin = time.monotonic()
        found = here.send(2, Watched(tensors(2), FIRST, lambda: os.kill(sleeper.pid or 0, signal.SIGSTOP)))
        assert time.monotonic() - begin < 3 * (2 * GLOO.broadcast_seconds + BROKER.lease_seconds)
        assert found.missed[name][0] in ("dead", "silent")
        here.run.publish(2)
        here.sampled(2, everyone - {name})
        os.kill(sleeper.pid or 0, signal.SIGCONT)
        here.sampled(2, everyone)
        version = 2

        def all_there() -> bool:
            nonlocal version
            version += 1
            return set(here.send(version).received) == everyone

        eventually(all_there, PATIENCE)
        here.sampled(version, everyone)


def test_receivers_of_a_sender_that_is_killed_recover_and_its_version_number_is_not_used_again(
    redis_url,
    tmp_path,
    model_path,  # noqa: F811
):
    with rig(redis_url, tmp_path, model_path) as here:
        here.start(2)
        everyone = set(here.ids().values())
        sender = PROCESSES.Process(target=send_and_die, args=(redis_url, here.run.epoch), daemon=True)
        sender.start()
        sender.join(PATIENCE)
        assert sender.exitcode == -signal.SIGKILL
        for id in everyone:
            eventually(lambda id=id: here.counted(id, "sieve_actor_transfers_total", outcome="broken") == 1, PATIENCE)
        here.sampled(0, everyone)
        here.run.epoch = here.run.broker.begin("learner")
        assert here.run.epoch.used_version == 1  # so that the next to be published is 2
        assert set(here.send(2).received) == everyone
        here.sampled(2, everyone)
