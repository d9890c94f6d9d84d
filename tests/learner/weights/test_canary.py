"""Canaries between a real learner policy and real torch engines, some of whose loads are broken on purpose."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from transformers import AutoModelForCausalLM

from actor.engine import Engine, NoAnswer
from actor.engines.torch import weights as torch_weights
from actor.engines.torch.engine import TorchEngine
from actor.engines.torch.model import Policy
from actor.metrics import ActorMetrics
from actor.weights.canary import LOOK_SECONDS
from actor.weights.canary import CanaryWatch as ActorWatch
from broker.errors import EX_MISMATCH, Fenced
from broker.queue.heartbeat import Heartbeat
from broker.queue.state import RunSpec, VersionName
from broker.queue.wire import float32, int32
from broker.weights.canary import SEQUENCES, Canaries, Canary, Report, difference
from broker.weights.directory import DirectoryStore
from learner.batch.samples import Samples
from learner.model.model import Scorer, load, shard
from learner.ranks import Ranks
from learner.settings import LearnerConfig
from learner.step_record import StepRecord
from learner.weights.canary import BOUNDS, CanaryWatch
from learner.weights.diagnosis import WeightsDisagree
from learner.weights.publish import publish_weights
from learner.weights.sequences import halves
from learner.weights.tensor_groups import Files, Suspect, best, groups_of, kind_of
from tests.broker.builders import EveryRole, v
from tests.learner.learner_rig import VOCABULARY, save_model

PROMPTS = [np.array(ids, np.int32) for ids in ([3, 5, 7, 9, 4], [8, 6], [10], [4, 11, 12, 13, 14, 15, 16])]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class BrokenPolicy(Policy):
    """A sampler whose loads leave the tensors that `stale` matches as they were."""

    stale = re.compile("$^")

    def load(self, directory: Path) -> None:
        tensors, held = torch_weights.read(directory), self._model.state_dict()
        torch_weights.put(
            self._model,
            {name: held[name].clone() if self.stale.search(name) else tensor for name, tensor in tensors.items()},
            str(directory),
        )


class StaleHead(Policy):
    """vLLM's trap on a CPU: the tied output head is a packed copy that a reload of the embedding does not renew."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        packed = model.lm_head.weight.detach().clone()
        model.lm_head.register_forward_hook(lambda module, inputs, output: inputs[0] @ packed.T)


class Bench:
    """A learner's policy with its published versions, and actors on it, over a real broker."""

    def __init__(self, path: Path, url: str, *, tied: bool = False, **learner: Any) -> None:
        self.path = path
        self.base = save_model(path / "base", tied=tied)
        self.config = LearnerConfig.model_validate(
            {
                "run": {"name": "canary", "directory": str(path / "runs")},
                "broker": {"connect_seconds": 5, "lease_seconds": 60},
                "model": {"path": str(self.base)},
                "data": {"train": str(path / "none.jsonl")},
                "learner": learner,
            }
        )
        self.broker = EveryRole.connect(self.config.broker, self.config.run, url=url)
        self.epoch = self.broker.begin("learner")
        self.broker.open_run(
            self.epoch,
            RunSpec(
                fingerprint="f" * 64, seed=7, steps=5, group_size=2, groups_per_step=2, publish_every=1,
                max_staleness=1, max_queued_bytes=1 << 20, max_new_tokens=8, train_prompts=1, eval_prompts=0,
                eos_token_ids=(1,), weights=str(path / "weights"),
            ),
            [], [],
        )  # fmt: skip
        self.ranks = Ranks("cpu", 60.0)
        model = load(self.base, torch.float32)
        self.policy: Scorer = shard(model, self.ranks.mesh, compute=torch.float32, trainable=True)
        self.weights = DirectoryStore(path / "weights")
        self.watch = CanaryWatch(self.config, self.ranks, self.broker, PROMPTS)
        self.version = -1
        self.publish()

    def learn(self, seed: int) -> None:
        """Every tensor moves, as after a few steps."""
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in self.policy.parameters():
                local = parameter.to_local()  # type: ignore[attr-defined]
                local += 0.1 * torch.randn_like(local)

    def publish(self) -> Canary:
        self.version += 1
        name = VersionName(self.version, self.epoch.number)
        identity = publish_weights(
            self.weights, name, self.policy, self.base, torch.float32, first=True, step=self.version
        )
        canary = self.watch.canary(self.version, self.policy)
        self.watch.put(canary, self.epoch, [one.number for one in self.weights.versions()])
        self.broker.publish(self.epoch, self.version, self.version, identity)
        return canary

    def engine(self, make: Callable[[Any], Policy] = Policy, dtype: torch.dtype = torch.float32) -> TorchEngine:
        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=dtype)
        return TorchEngine(
            make(model), lambda rows: ["" for _ in rows], eos=[1], max_new_tokens=8, max_batch=4, name="actor-0"
        )

    def actor(self, name: str = "actor-0", precision: Any = "float32") -> tuple[ActorWatch, CollectorRegistry]:
        registry = CollectorRegistry()
        self.broker.heartbeat(Heartbeat(id=name, role="actor", phase="sampling"))
        watch = ActorWatch(
            Canaries(self.broker), ActorMetrics(registry), logging.getLogger("test"),
            actor=name, engine="torch", precision=precision,
        )  # fmt: skip
        return watch, registry

    def take_over(self, engine: Engine, actor: ActorWatch) -> float:
        """Load the newest version as an actor does, then score its canary."""
        engine.load(self.version, self.weights.fetch(VersionName(self.version, self.epoch.number)).directory)
        mean = actor.look(engine)
        assert mean is not None and actor.look(engine) is None, "scored once per load"
        return mean

    def trouble(self) -> bool:
        self.watch._looked = 0.0  # as if the pause between two looks had passed
        return self.watch.mismatched()

    def verdict(self, current: bool = True) -> str:
        with pytest.raises(WeightsDisagree) as stop:
            self.watch.explain(self.policy, self.weights, current=current, committed=3)
        assert stop.value.exit_code == EX_MISMATCH
        return str(stop.value)


@pytest.fixture
def bench(tmp_path: Path, redis_url: str) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(tmp_path, redis_url, **options))
        return made[-1]

    yield make
    for one in made:
        one.broker.close()
        one.ranks.close()


def test_a_healthy_actor_agrees_to_rounding_at_start_and_after_every_update(bench: Callable[..., Bench]) -> None:
    run = bench()
    engine, (actor, registry) = run.engine(), run.actor()
    for seed in range(4):
        assert run.take_over(engine, actor) < 1e-5
        assert not run.trouble()
        mean, largest = run.watch.largest_differences()
        assert mean is not None and largest is not None and 0 < mean <= largest
        run.learn(seed)
        run.publish()
    assert registry.get_sample_value("sieve_actor_canary_mismatch_nats", {"statistic": "max"}) < 1e-4  # type: ignore[operator]
    assert registry.get_sample_value("sieve_actor_canary_seconds_count") == 4


def test_an_engine_that_is_away_is_asked_again_and_one_that_lost_its_weights_shows_them_again(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    run = bench()
    engine, (actor, registry) = run.engine(), run.actor()
    answers = engine.score

    def away(sequences: Any) -> Any:
        raise NoAnswer("the server is gone")

    engine.load(0, run.weights.fetch(v(0)).directory)
    engine.score = away  # type: ignore[method-assign]
    until = time.monotonic() + 2 * LOOK_SECONDS
    while time.monotonic() < until:
        assert actor.look(engine) is None
    assert caplog.text.count("canary of version 0 is to be scored again: the server is gone") == 1
    engine.score = answers  # type: ignore[method-assign]
    run.broker.heartbeat(Heartbeat(id="actor-0", role="actor", phase="sampling"))
    while actor.look(engine) is None:
        assert time.monotonic() < until + 10
    engine._version = None
    assert actor.look(engine) is None
    assert run.take_over(engine, actor) < 1e-5
    assert registry.get_sample_value("sieve_actor_canary_seconds_count") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stale", "group"),
    [
        (r"lm_head", "lm_head"),
        (r"layers\.1\.self_attn\.", "attention of layer 1"),
        (r"\.mlp\.", "mlp (all layers)"),
        (r"embed_tokens", "embedding"),
        (r"layers\.0\.", "layer 0"),
        (r"layernorm", "norm (all layers)"),
    ],
)
def test_a_load_that_skips_tensors_stops_the_run_and_their_group_is_named(
    bench: Callable[..., Bench], stale: str, group: str
) -> None:
    run = bench()

    class Broken(BrokenPolicy):
        pass

    Broken.stale = re.compile(stale)
    engine, (actor, _) = run.engine(Broken), run.actor()
    healthy, (other, _) = run.engine(), run.actor("actor-1")
    assert run.take_over(engine, actor) < 1e-5, "at first it holds the base model, which is version 0"
    for seed in range(2):  # two updates: what it skips is then the base's, not the former version's
        run.learn(seed)
        run.publish()
        run.take_over(healthy, other)
    mean = run.take_over(engine, actor)
    assert mean > BOUNDS["float32"]
    assert run.trouble()
    text = run.verdict(current=bool(len(group) % 2))  # whether its files could be compared too changes nothing
    assert f"tensor group {group}:" in text and "of the base model" in text
    assert "version 2: actor-0 (engine torch)" in text and f"{mean:.3g} nats" in text and "0.001" in text
    assert "actor-1" not in text and "step 3" in text and "--resume" in text


def test_an_update_that_never_took_effect_is_told_from_one_that_took_effect_in_part(
    bench: Callable[..., Bench],
) -> None:
    run = bench()
    engine, (actor, _) = run.engine(), run.actor()
    run.learn(0)
    run.publish()
    run.take_over(engine, actor)
    run.learn(1)
    run.publish()
    engine._version = run.version  # stamped, nothing loaded
    assert actor.look(engine) > BOUNDS["float32"]  # type: ignore[operator]
    assert run.trouble()
    run.learn(2)  # the learner has gone on since: the version's files still tell
    text = run.verdict(current=False)
    assert "tensor group all tensors:" in text and "that of version 1" in text


def test_a_packed_output_head_of_a_tied_model_is_named(bench: Callable[..., Bench]) -> None:
    run = bench(tied=True)
    engine, (actor, _) = run.engine(StaleHead), run.actor()
    run.learn(0)
    run.publish()
    assert run.take_over(engine, actor) > BOUNDS["float32"]
    assert run.trouble()
    assert "tensor group lm_head (tied to the embedding):" in run.verdict()


def test_a_bfloat16_sampler_of_a_float32_learner_is_held_to_its_own_bound(bench: Callable[..., Bench]) -> None:
    run = bench()
    coarse = run.engine(dtype=torch.bfloat16)
    actor, _ = run.actor(precision="bfloat16")
    for seed in range(3):
        mean = run.take_over(coarse, actor)
        assert 1e-6 < mean < BOUNDS["bfloat16"]
        assert not run.trouble()
        run.learn(seed)
        run.publish()


def test_a_bound_can_be_set_and_what_no_tensor_explains_is_said_to_be_none(bench: Callable[..., Bench]) -> None:
    run = bench(mismatch_nats=1e-7)
    run.learn(0)
    run.publish()
    coarse = run.engine(dtype=torch.bfloat16)
    actor, _ = run.actor(precision="bfloat16")
    mean = run.take_over(coarse, actor)
    assert run.trouble()
    text = run.verdict()
    assert "No group of tensors" in text and "precision" in text and f"{mean:.3g}" in text and "1e-07" in text


def test_published_files_that_are_not_the_learners_are_blamed_before_any_sampler(bench: Callable[..., Bench]) -> None:
    run = bench()
    engine, (actor, _) = run.engine(), run.actor()
    run.learn(0)
    run.publish()
    with torch.no_grad():  # what is published is not what the learner scores with
        run.policy.causal_lm.model.layers[0].mlp.up_proj.weight.add_(0.5)
    run.watch.put(run.watch.canary(1, run.policy), run.epoch, [one.number for one in run.weights.versions()])
    run.take_over(engine, actor)
    assert run.trouble()
    text = run.verdict(current=True)
    assert "published files are not what the learner holds: look at mlp, model.layers.0.mlp.up_proj.weight" in text


def test_published_files_that_are_damaged_are_named_instead_of_a_tensor_group(bench: Callable[..., Bench]) -> None:
    run = bench()

    class Broken(BrokenPolicy):
        stale = re.compile("lm_head")

    engine, (actor, _) = run.engine(Broken), run.actor()
    run.learn(0)
    run.publish()
    run.take_over(engine, actor)
    assert run.trouble()
    path = run.weights.fetch(v(1)).directory / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    text = run.verdict()
    assert "files cannot be read" in text and "v00000001-e0001/model.safetensors: expected sha256" in text


def test_the_report_of_an_actor_that_has_gone_stops_nothing(bench: Callable[..., Bench]) -> None:
    run = bench()

    class Broken(BrokenPolicy):
        stale = re.compile("lm_head")

    engine, (actor, _) = run.engine(Broken), run.actor()
    run.learn(0)
    run.publish()
    assert run.take_over(engine, actor) > BOUNDS["float32"]
    run.broker.heartbeat(Heartbeat(id="actor-0", role="actor", phase="stopped"))
    assert not run.trouble()


def test_weights_can_be_here_before_their_canary(bench: Callable[..., Bench]) -> None:
    run = bench()
    engine, (actor, _) = run.engine(), run.actor()
    run.learn(0)
    run.version += 1
    publish_weights(run.weights, v(1), run.policy, run.base, torch.float32, first=True, step=1)
    engine.load(1, run.weights.fetch(v(1)).directory)
    assert actor.look(engine) is None
    run.watch.put(run.watch.canary(1, run.policy), run.epoch, [one.number for one in run.weights.versions()])
    actor._not_before = 0.0
    mean = actor.look(engine)
    assert mean is not None and mean < 1e-5 and not run.trouble()


def test_one_sequence_is_the_same_in_every_canary_and_the_others_are_the_newest(bench: Callable[..., Bench]) -> None:
    """Whoever scored it under earlier weights and kept keys and values reuses them, and the scores show it."""
    run = bench()
    first = run.watch.canary(0, run.policy)
    answer = np.array([5, 6], np.int32)
    samples = Samples(
        shapes=[], prompts=[PROMPTS[0]], completions=[[answer]], first=[0], keys=[("0:0", 0)],
        sampler=[np.zeros(2, np.float32)], base=[None], passed=np.array([True]), prompt=np.array([0]),
        group=np.array([0]), oldest=np.array([0]), staleness=np.array([0]), actors=["actor"],
    )  # fmt: skip
    run.watch.trained(samples, StepRecord(step=1, version=0, time=0.0), 0)
    then = run.watch.canary(1, run.policy)
    assert (
        (then.prompts[0], then.answers[0])
        == (first.prompts[0], first.answers[0])
        == (
            int32(PROMPTS[3][:3]),
            int32(PROMPTS[3][3:]),
        )
    )
    assert then.prompts[1:] == (int32(PROMPTS[0]),) and then.answers[1:] == (int32(answer),)


def test_canaries_and_reports_go_with_their_versions_and_only_the_newest_learner_puts_them(
    bench: Callable[..., Bench],
) -> None:
    run = bench()
    canaries = Canaries(run.broker)
    engine, (actor, _) = run.engine(), run.actor()
    run.take_over(engine, actor)
    assert [report.version for report in canaries.reports()] == [0]
    for _ in range(3):
        canary = run.publish()
        run.weights.keep(run.weights.versions()[-2:], 1)
    run.take_over(engine, actor)
    assert canaries.get(0) is None and canaries.get(1) is not None and canaries.get(3) is not None
    assert [report.version for report in canaries.reports()] == [3]
    canaries.report(Report(version=0, actor="late", engine="torch", precision="float32", logprobs=(b"\0\0\0\0",)))
    assert [report.actor for report in canaries.reports()] == ["actor-0"]
    run.broker.heartbeat(Heartbeat(id="learner", role="learner", phase="stopped"))
    run.broker.begin("another")
    with pytest.raises(Fenced):
        run.watch.put(canary, run.epoch, [])


def test_numbers_that_are_none_and_answers_of_another_length_are_infinitely_far() -> None:
    one = Canary(
        version=0, precision="float32", prompts=(int32([3]),), answers=(int32([4, 5]),), logprobs=(float32([-1, -2]),)
    )
    assert one.difference([float32([-1, -2.5])]) == pytest.approx((0.25, 0.5))
    for wrong in ([float32([-1, np.nan])], [float32([-np.inf, -2])], [float32([-1])], []):
        assert one.difference(wrong) == (float("inf"), float("inf"))
    assert difference([float32([0.0])], [float32([0.0])]) == (0.0, 0.0)


def test_prompts_make_canaries_before_anything_was_sampled() -> None:
    sequences = halves(PROMPTS)
    assert [(len(prompt), len(answer)) for prompt, answer in sequences] == [(2, 3), (1, 1), (1, 1), (3, 4)]
    for (prompt, answer), whole in zip(sequences, PROMPTS, strict=True):
        assert np.concatenate([prompt, answer]).tolist() == (whole.tolist() if len(whole) > 1 else whole.tolist() * 2)
    assert all(len(prompt) <= 192 and len(answer) <= 64 for prompt, answer in halves([np.ones(1000, np.int32)] * 50))
    assert len(halves([np.ones(1000, np.int32)] * 50)) == SEQUENCES


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("lm_head.weight", "lm_head"),
        ("model.norm.weight", "norm"),
        ("model.layers.3.post_attention_layernorm.weight", "norm"),
        ("model.layers.3.self_attn.q_proj.weight", "attention"),
        ("model.layers.3.self_attn.q_norm.weight", "norm"),
        ("model.layers.3.mlp.experts.7.up_proj.weight", "mlp"),
        ("something.else", "other"),
    ],
)
def test_tensors_are_known_by_their_names(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_groups_name_each_set_of_tensors_once_and_the_smallest_that_explains_is_blamed() -> None:
    names = ["model.embed_tokens.weight", *(f"model.layers.{i}.mlp.up_proj.weight" for i in range(2)), "lm_head.weight"]
    groups = groups_of(names)
    assert groups["mlp of layer 1"] == [names[2]] and groups["mlp (all layers)"] == names[1:3]
    assert "layer 1" not in groups and groups["all tensors"] == names
    assert len({tuple(members) for members in groups.values()}) == len(groups)
    whole = Suspect("all tensors", "version 1", 1.0e-6, tuple(names))
    part = Suspect("lm_head", "version 1", 1.1e-6, (names[3],))
    assert best([whole, part], 1e-3) == part
    assert best([Suspect("lm_head", "version 1", 0.5, (names[3],))], 1e-3) is None


def test_files_know_their_tensors(tmp_path: Path) -> None:
    files = Files(save_model(tmp_path / "model"))
    assert "lm_head.weight" in files and "nothing" not in files
    assert files["lm_head.weight"].shape == (VOCABULARY, 16)
