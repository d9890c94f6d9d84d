"""The openai engine against a real vLLM server on this machine: exact log-probs, spans, updates in flight, deaths."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm.v1", reason="make test-vllm installs it")

import torch

from actor.engine import PromptTooLong, WeightsUnusable, WrongVersion
from actor.engines.openai.engine import OpenAIEngine
from actor.engines.openai.http import ServerRefused, ServerUnavailable
from actor.engines.openai.server import ServerFixed, ServerShared
from actor.engines.openai.settings import OpenAISettings
from actor.engines.tokenizer import open_tokenizer
from actor.weights.checks import VersionFiles
from broker.queue.wire import Completion, Lane, Prompt, Ticket, int32
from tests.vllm.vllm_server import VllmServer, versions

BASE = Path(__file__).parents[2] / "examples" / "countdown" / "base"
VOCABULARY, EOS, LIMIT = 72, 1, 40
TOLERANCE = 1e-4  # float32, per token
KEY = "a-key-of-the-tests"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("SERVER_KEY", KEY)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, Path]]:
    return versions(BASE, tmp_path_factory.mktemp("versions"), 3)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    server = VllmServer(BASE, tmp_path_factory.mktemp("server") / "log", key=KEY)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[Callable[..., OpenAIEngine]]:
    """Opens an engine on the server at `url`, or on the one that this module's tests share."""
    opened: list[OpenAIEngine] = []

    def opener(url: str = "", *, max_new_tokens: int = LIMIT, eos: int = EOS, **settings: Any) -> OpenAIEngine:
        url = url or request.getfixturevalue("server").url
        settings = {"urls": (url,), "key_env": "SERVER_KEY", "outage_seconds": 300.0, **settings}
        made = OpenAIEngine(
            OpenAISettings(**settings),
            url,
            VersionFiles(BASE, adapters=False),
            open_tokenizer(BASE, VOCABULARY),
            eos=[eos],
            vocabulary=VOCABULARY,
            max_new_tokens=max_new_tokens,
            max_batch=16,
            name="test",
        )
        opened.append(made)
        return made

    yield opener
    for made in opened:
        made.close()


def prompt(tokens: list[int], index: int = 0) -> Prompt:
    return Prompt(index=index, text="", tokens=int32(tokens), verifier="none", record={})


def ticket(index: int, n: int = 4, *, version: int = 0, lane: Lane = "train") -> Ticket:
    group_id = f"e{version}:{index}" if lane == "eval" else f"0:{index}"
    return Ticket(
        group_id=group_id,
        lane=lane,
        prompt=index,
        n=n,
        seed=7 + index,
        version=version,
        attempt=1,
        missing=tuple(range(n)),
    )


QUESTIONS = [prompt([(3 + 5 * at + 7 * index) % 60 + 5 for at in range(1 + 3 * index)], index) for index in range(6)]


def drain(sampler: OpenAIEngine, seconds: float = 240.0) -> list[Completion]:
    done, until = [], time.monotonic() + seconds
    while sampler.in_flight:
        assert time.monotonic() < until, f"{sampler.in_flight} completions still in flight"
        done += sampler.poll(0.1)
    return done


def keys(done: list[Completion]) -> list[tuple[str, int]]:
    return sorted((one.group_id, one.idx) for one in done)


@torch.inference_mode()
def reference(model: Any, question: Prompt, ids: np.ndarray) -> np.ndarray:
    """log π of each answer token by one plain forward pass of transformers."""
    before = np.frombuffer(question.tokens, "<i4").tolist()
    logits = model(input_ids=torch.tensor([before + ids.tolist()])).logits[0, len(before) - 1 : -1]
    return torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(ids.tolist())[:, None]).squeeze(1).numpy()


def check(done: list[Completion], published: list[tuple[Any, Path]]) -> None:
    for one in done:
        assert [span[0] for span in one.spans] == sorted({span[0] for span in one.spans})
        for version, start, end in one.spans:
            expected = reference(published[version % len(published)][0], QUESTIONS[one.prompt], one.ids)
            np.testing.assert_allclose(one.sampler_logprobs[start:end], expected[start:end], atol=TOLERANCE)


def test_log_probs_are_transformers_own_ends_are_kept_and_every_attempt_meets_the_same_noise(engine, published):
    sampler = engine(max_new_tokens=12)
    with pytest.raises(WrongVersion, match="loaded is None"):
        sampler.submit(ticket(0), QUESTIONS[0])
    seconds = sampler.load(0, published[0][1])
    assert 0 < seconds["load"] < seconds["pause"]
    rounds = []
    for _ in range(2):
        for question in QUESTIONS:
            sampler.submit(ticket(question.index, n=8), question)
        assert sampler.in_flight == 48 and sampler.oldest_version() == 0
        rounds.append({(one.group_id, one.idx): one for one in drain(sampler)})
    first, second = rounds
    assert len(first) == 48 and {one.finish for one in first.values()} == {"stop", "length"}
    assert len({one.tokens for one in first.values()}) > 24
    assert {key: one.tokens for key, one in first.items()} == {key: one.tokens for key, one in second.items()}
    assert sampler.tokens == 2 * sum(len(one.ids) for one in first.values())
    check([*first.values()], published)
    for one in first.values():
        ids = one.ids.tolist()
        assert one.spans == ((0, 0, len(ids)),) and EOS not in ids[:-1]
        assert (ids[-1] == EOS) == (one.finish == "stop") and (one.finish == "stop" or len(ids) == 12)
    decode = open_tokenizer(BASE, VOCABULARY)
    assert [one.text for one in first.values()] == decode([one.ids.tolist() for one in first.values()])


def test_weights_change_under_running_completions_and_the_spans_tell_the_truth(engine, server, published):
    sampler = engine(eos=70)  # hardly ever sampled: long answers
    sampler.load(0, published[0][1])
    done, version, until = [], 0, time.monotonic() + 240
    while sum(len(one.spans) > 1 for one in done) <= 8:  # an update may come before or after all that it was to meet
        assert time.monotonic() < until
        sampled = server.sampled()
        for question in QUESTIONS:
            sampler.submit(ticket(question.index, n=8, version=version), question)
        while server.sampled() == sampled:
            assert time.monotonic() < until
        for _ in range(3):
            version += 1
            sampler.load(version, published[version % 3][1])
            assert sampler.version == version
        found = drain(sampler)
        assert keys(found) == sorted((f"0:{q.index}", i) for q in QUESTIONS for i in range(8))
        done += found
    check(done, published)


def test_evaluations_are_pinned_and_what_does_not_fit_is_refused(engine, published, tmp_path):
    sampler = engine(max_new_tokens=30)
    sampler.load(1, published[1][1])
    for version in (0, 2):
        with pytest.raises(WrongVersion, match=f"needs version {version}, loaded is 1"):
            sampler.submit(ticket(0, version=version, lane="eval"), QUESTIONS[0])
    with pytest.raises(PromptTooLong, match=r"has 35 tokens.*must have 1 … 34.*64 positions"):
        sampler.submit(ticket(0), prompt([5] * 35))
    with pytest.raises(PromptTooLong):
        sampler.submit(ticket(0), prompt([]))
    assert sampler.in_flight == 0
    sampler.submit(ticket(1, version=1, lane="eval"), QUESTIONS[1])
    with pytest.raises(WrongVersion, match="4 completions in flight may not be sampled with version 2"):
        sampler.load(2, published[2][1])
    done = drain(sampler)
    assert all(one.spans == ((1, 0, len(one.ids)),) for one in done) and len(done) == 4
    (tmp_path / "torn").mkdir()
    with pytest.raises(WeightsUnusable, match="not readable as safetensors"):
        sampler.check(tmp_path / "torn")
    sampler.submit(ticket(2), QUESTIONS[2])
    check(drain(sampler), published)


def test_given_answers_are_scored_up_to_the_models_last_position(engine, published):
    sampler = engine()
    with pytest.raises(WrongVersion, match="no weights are loaded"):
        sampler.score([(np.array([5]), np.array([6]))])
    sampler.load(2, published[2][1])
    answers = [[9], [EOS], [8, 20, 33, EOS], [(7 * at) % 60 + 5 for at in range(63)]]
    scores = sampler.score([(np.array([5], np.int32), np.array(answer, np.int32)) for answer in answers])
    for answer, score in zip(answers, scores, strict=True):
        assert score.dtype == np.float32
        np.testing.assert_allclose(
            score, reference(published[2][0], prompt([5]), np.array(answer)), atol=TOLERANCE, rtol=1e-4
        )
    with pytest.raises(PromptTooLong, match="sequence 0 has 1 prompt and 64 answer tokens"):
        sampler.score([(np.array([5]), np.arange(64))])


def test_cancelled_completions_leave_the_server_and_the_others_are_untouched(engine, server, published):
    sampler = engine(eos=70)
    sampler.load(0, published[0][1])
    server.ask("/pause?mode=keep", "POST")  # so that nothing ends before it is cancelled
    for question in QUESTIONS:
        sampler.submit(ticket(question.index), question)
    until = time.monotonic() + 60
    while server.running() < 20 and time.monotonic() < until:
        time.sleep(0.2)
    assert sampler.cancel(["0:0", "0:3", "0:4"]) == 12 and sampler.in_flight == 12
    server.ask("/resume", "POST")
    done = drain(sampler)
    assert sorted({one.group_id for one in done}) == ["0:1", "0:2", "0:5"] and len(done) == 12
    check(done, published)
    while server.running() and time.monotonic() < until:
        time.sleep(0.2)
    assert server.running() == 0


def test_a_second_actor_at_the_same_server_is_noticed_and_believed_by_neither(engine, published):
    first = engine(eos=70)
    first.load(0, published[0][1])
    second = engine()
    second.load(0, published[1][1])
    first.submit(ticket(0), QUESTIONS[0])
    with pytest.raises(ServerShared, match="loaded by another actor"):
        drain(first)
    second.submit(ticket(1), QUESTIONS[1])
    for one in drain(second):
        expected = reference(published[1][0], QUESTIONS[1], one.ids)
        np.testing.assert_allclose(one.sampler_logprobs, expected, atol=TOLERANCE)
    with pytest.raises(ServerShared):
        first.load(1, published[1][1])


def test_a_wrong_key_or_model_is_refused_and_the_key_is_not_shown(engine, server, monkeypatch):
    with pytest.raises(ServerRefused, match=r"serves policy, actor\.openai\.model is other"):
        engine(model="other")
    monkeypatch.setenv("SERVER_KEY", "a-wrong-key")
    with pytest.raises(ServerRefused, match=r"GET .*/v1/models: status 401") as refused:
        engine()
    assert "a-wrong-key" not in str(refused.value)
    monkeypatch.delenv("SERVER_KEY")
    with pytest.raises(ServerRefused, match="key_env = SERVER_KEY, but that variable is not set"):
        engine()
    assert KEY not in server._log.read_text()


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again_gets_its_weights_back_and_nothing_is_lost(
    engine, published, tmp_path
):
    server = VllmServer(BASE, tmp_path / "log", key=KEY)
    try:
        server.start()
        sampler = engine(server.url, eos=70)
        sampler.load(0, published[0][1])
        sampler.load(1, published[1][1])
        sampler.submit(ticket(0, version=1), QUESTIONS[0])
        done = drain(sampler)
        server.ask("/pause?mode=keep", "POST")  # so that it has the others in its hands when it is killed
        for question in QUESTIONS[1:]:
            sampler.submit(ticket(question.index, version=1), question)
        until = time.monotonic() + 60
        while server.running() < 16 and time.monotonic() < until:
            time.sleep(0.2)
        server.kill()
        # What had arrived before the end counts; the others wait for a server with its weights.
        until = time.monotonic() + 5
        while time.monotonic() < until:
            done += sampler.poll(0.1)
        waiting = sampler.in_flight
        assert (waiting, len(done)) == (20, 4)
        server.start()
        until = time.monotonic() + 60
        while sampler.version is not None and time.monotonic() < until:
            done += sampler.poll(0.1)
        assert sampler.version is None and sampler.in_flight == waiting
        sampler.load(1, published[1][1])
        done += drain(sampler)
        assert sorted((one.group_id, one.idx) for one in done) == sorted(
            (f"0:{q.index}", i) for q in QUESTIONS for i in range(4)
        )
        assert all(one.spans == ((1, 0, len(one.ids)),) for one in done)
        check(done, published)
        # One that stays away ends the actor, within its limit.
        short = engine(server.url, outage_seconds=3.0)
        short.load(0, published[0][1])
        short.submit(ticket(0), QUESTIONS[0])
        server.signal(signal.SIGKILL)
        with pytest.raises(ServerUnavailable, match=r"no answer for \d+ s, outage_seconds is 3") as gone:
            drain(short)
        assert gone.value.exit_code == 69
    finally:
        server.kill()


@pytest.mark.slow
def test_a_server_without_endpoints_for_weights_serves_version_0_and_no_other(engine, tmp_path):
    server = VllmServer(BASE, tmp_path / "log", key=KEY, dev=False)
    try:
        server.start()
        sampler = engine(server.url)
        sampler.load(0, BASE)
        sampler.submit(ticket(1, version=0, lane="eval"), QUESTIONS[1])
        done = drain(sampler)
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
        assert len(done) == 4
        for one in done:
            assert one.spans == ((0, 0, len(one.ids)),)
            np.testing.assert_allclose(one.sampler_logprobs, reference(base, QUESTIONS[1], one.ids), atol=TOLERANCE)
        with pytest.raises(ServerFixed, match="VLLM_SERVER_DEV_MODE=1"):
            sampler.load(1, BASE)
    finally:
        server.kill()


@pytest.mark.slow
def test_a_directory_that_the_server_does_not_see_is_named_with_the_setting_that_maps_it(engine, published, tmp_path):
    server = VllmServer(BASE, tmp_path / "log", key=KEY)
    try:
        server.start()
        sampler = engine(server.url, weights=tmp_path / "elsewhere")
        with pytest.raises(ServerRefused, match=r"could not load version 0: .*set actor.openai.weights to"):
            sampler.load(0, published[0][1])
        assert sampler.version is None
    finally:
        server.kill()
