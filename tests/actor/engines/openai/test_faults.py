"""The openai engine and misbehaving servers: a small real HTTP server answers as a test prescribes."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from actor.engine import EngineError, NoAnswer, request_seed
from actor.engines.openai import server as openai_server
from actor.engines.openai import wire
from actor.engines.openai.engine import ATTEMPTS, OpenAIEngine
from actor.engines.openai.http import ServerRefused, ServerUnavailable
from actor.engines.openai.server import ServerAway, ServerShared
from actor.engines.openai.settings import OpenAISettings
from actor.engines.openai.wire import AnswerUnusable
from actor.engines.tokenizer import open_tokenizer
from actor.weights.checks import VersionFiles
from broker.queue.wire import Completion
from tests.actor.actor_process import tree
from tests.actor.tiny_llama import prompt, ticket

BASE = Path(__file__).parents[4] / "examples" / "countdown" / "base"
EOS, LIMIT, VOCABULARY = 1, 4, 72
KEY = "sk-very-secret"
Reply = tuple[int, bytes] | None
"""Status and body; None cuts the connection."""


def answer(tokens: list[int] | None = None, **changes: Any) -> dict[str, Any]:
    """An answer like vLLM's, with `changes` to its one choice; None removes a field."""
    tokens = [5, 6, EOS] if tokens is None else tokens
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "token_ids": tokens,
        "weight_versions": [{"version": "default", "start": 0, "end": len(tokens)}],
        "logprobs": {"content": [{"token_id": token, "logprob": -0.5, "rank": 1} for token in tokens]},
        **changes,
    }
    return {"request_id": "x", "choices": [{name: value for name, value in choice.items() if value is not None}]}


SOUND = (200, json.dumps(answer()).encode())


class Peer:
    """A server whose weights cannot be changed while `stamp` is None. `generate` gives the answer to a completion's
    request, `loads` that to a load, and `health` that to a health check."""

    def __init__(self) -> None:
        self.stamp: str | None = None
        self.loads: Reply = (200, b"{}")
        self.health: Reply = (200, b"")
        self.calls: list[str] = []
        self.generate: Callable[[int, dict[str, Any]], Reply] = lambda count, request: SOUND
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        peer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: Any) -> None:
                """Log nothing."""

            def do_GET(self) -> None:
                models = {"data": [{"id": "policy", "max_model_len": 64}]}
                known = {"/v1/models": (200, json.dumps(models).encode()), "/health": peer.health}
                if peer.stamp is not None:
                    known["/weight_info"] = (200, json.dumps({"weight_version": peer.stamp}).encode())
                    known["/is_paused"] = (200, b'{"is_paused": false}')
                self.reply(known.get(self.path, (404, b"no")))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
                if self.path != wire.GENERATE:
                    peer.calls.append(self.path.partition("?")[0])
                    peer.stamp = body.get("new_version", peer.stamp)
                    self.reply(peer.loads if self.path == "/collective_rpc" else (200, b"{}"))
                    return
                peer.requests.append(body)
                peer.headers.append(dict(self.headers))
                self.reply(peer.generate(len(peer.requests), body))

            def reply(self, reply: Reply) -> None:
                if reply is None:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                status, body = reply
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.server.shutdown()
    peer.server.server_close()


def opened(url: str, **settings: Any) -> OpenAIEngine:
    engine = OpenAIEngine(
        OpenAISettings(urls=(url,), **{"key_env": "SERVER_KEY", "outage_seconds": 60.0, **settings}),
        url,
        VersionFiles(BASE, adapters=False),
        open_tokenizer(BASE, VOCABULARY),
        eos=[EOS],
        vocabulary=VOCABULARY,
        max_new_tokens=LIMIT,
        max_batch=8,
        name="test",
    )
    engine.load(0, BASE)
    return engine


@pytest.fixture
def sampler(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAIEngine]:
    monkeypatch.setenv("SERVER_KEY", KEY)
    monkeypatch.setattr(openai_server, "LOOK_SECONDS", 0.05)
    engine = opened(peer.url)
    yield engine
    engine.close()


def drain(sampler: OpenAIEngine) -> list[Completion]:
    done, until = [], time.monotonic() + 60
    while sampler.in_flight:
        assert time.monotonic() < until
        done += sampler.poll(0.05)
    return done


def test_a_valid_answer_becomes_a_completion_and_the_request_samples_from_the_policy_itself(peer, sampler):
    sampler.submit(ticket(0, n=2), prompt([7, 8]))
    done = drain(sampler)
    assert sorted(one.idx for one in done) == [0, 1]
    for one in done:
        assert one.ids.tolist() == [5, 6, EOS] and one.finish == "stop" and one.spans == ((0, 0, 3),)
        np.testing.assert_array_equal(one.sampler_logprobs, np.full(3, -0.5, np.float32))
    assert {header["Authorization"] for header in peer.headers} == {f"Bearer {KEY}"}
    for request in peer.requests:
        asked = request["sampling_params"]
        assert request["token_ids"] == [7, 8] and request["model"] == "policy"
        assert (asked["temperature"], asked["top_p"], asked["top_k"], asked["min_p"], asked["n"]) == (1, 1, 0, 0, 1)
        assert (asked["max_tokens"], asked["stop_token_ids"], asked["ignore_eos"]) == (LIMIT, [EOS], True)
        assert 0 <= asked["seed"] < 2**63
    assert len({request["sampling_params"]["seed"] for request in peer.requests}) == 2


SCORES = [{"token_id": token, "logprob": -0.5} for token in (5, 6, EOS)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (answer(logprobs=None), r"choices.0.logprobs: Field required"),
        (answer(logprobs={"content": SCORES[:2]}), "3 tokens and 2 log-probs"),
        (answer(logprobs={"content": [*SCORES[:2], SCORES[0]]}), "token 2 is 1, its log-prob is of token 5"),
        (answer([5, 72, EOS]), r"token 1 is 72, the model at model.path has ids 0 … 71"),
        (answer([5, -1, EOS]), r"token 1 is -1"),
        (answer([]), r"has 0 tokens, requested were 1 … 4"),
        (answer([5, 5, 5, 5, EOS]), r"has 5 tokens, requested were 1 … 4"),
        (answer([5, 6, 7]), "of 3 tokens .at most 4. ended for stop with token 7"),
        (answer([5, 6, 7], finish_reason="length"), "ended for length with token 7"),
        (answer([5, 6, 7, EOS], finish_reason="length"), "ended for length with token 1"),
        (answer([5, EOS, 7, EOS]), "one is at 1"),
        (answer(logprobs={"content": [{**one, "logprob": -9999.0} for one in SCORES]}), r"log-prob 0 is -9999.0"),
        (answer(logprobs={"content": [{**one, "logprob": float("nan")} for one in SCORES]}), "log-prob 0 is nan"),
        (answer(logprobs={"content": [{**one, "logprob": -float("inf")} for one in SCORES]}), "log-prob 0 is -inf"),
        (answer(logprobs={"content": [{**one, "logprob": 1.5} for one in SCORES]}), "over 0: these are logits"),
        (answer(weight_versions=[{"version": "default", "start": 0, "end": 2}]), "do not partition 3 tokens"),
        (answer(weight_versions=[{"version": "default", "start": 0, "end": 3}] * 2), "do not partition 3 tokens"),
        ({"choices": [*answer()["choices"], *answer()["choices"]]}, "at most 1 item"),
        ({"choices": []}, "at least 1 item"),
        ([], "does not answer like vLLM 0.32"),
    ],
)
@pytest.mark.slow
def test_an_invalid_answer_is_refused_and_the_message_names_the_fault(peer, sampler, body, message):
    peer.generate = lambda count, request: (200, json.dumps(body).encode())
    sampler.submit(ticket(0, n=1), prompt([7]))
    with pytest.raises(AnswerUnusable, match=message) as refused:
        drain(sampler)
    assert refused.value.exit_code == 65 and len(str(refused.value)) < 600


@pytest.mark.parametrize("body", [b"<html>login</html>", b"", b"\xff\xfe", b"[" * 5000, b'{"choices": [1e999]}'])
def test_a_body_that_is_not_an_answer_is_refused(peer, sampler, body):
    peer.generate = lambda count, request: (200, body)
    sampler.submit(ticket(0, n=1), prompt([7]))
    with pytest.raises(AnswerUnusable, match=r"check that actor\.openai\.urls names a vLLM server"):
        drain(sampler)


def test_a_body_without_end_is_cut_off(peer, sampler):
    most = wire.most_bytes(LIMIT)
    peer.generate = lambda count, request: (200, b" " * (most + 1))
    sampler.submit(ticket(0, n=1), prompt([7]))
    with pytest.raises(ServerRefused, match=f"answers with more than {most} bytes"):
        drain(sampler)


def test_a_refusal_quotes_the_server_without_the_key(peer, sampler):
    peer.generate = lambda count, request: (403, f"start with --enable-scale-out, {KEY}".encode())
    sampler.submit(ticket(0, n=1), prompt([7]))
    with pytest.raises(ServerRefused, match=r"status 403 start with --enable-scale-out, \*\*\*") as refused:
        drain(sampler)
    assert refused.value.exit_code == 64


def test_the_key_is_not_sent_to_the_target_of_a_redirect(peer, sampler):
    peer.generate = lambda count, request: (302, b"over there")
    sampler.submit(ticket(0, n=1), prompt([7]))
    with pytest.raises(ServerRefused, match="status 302"):
        drain(sampler)


@pytest.mark.parametrize("fault", [None, (500, b"oops"), (503, b""), (429, b"later")])
def test_after_a_fault_each_completion_comes_once_with_its_own_seed(peer, sampler, fault):
    peer.generate = lambda count, request: fault if count <= 5 else SOUND
    sampler.submit(ticket(0, n=4), prompt([7]))
    done = drain(sampler)
    assert sorted(one.idx for one in done) == [0, 1, 2, 3]
    assert len(peer.requests) == 9
    assert {one["sampling_params"]["seed"] for one in peer.requests} == {request_seed(1000, idx) for idx in range(4)}
    assert sampler.tokens == 12


def test_an_aborted_completion_is_sampled_again(peer, sampler):
    given_up = (200, json.dumps(answer([5], finish_reason="abort")).encode())
    peer.generate = lambda count, request: given_up if count == 1 else SOUND
    sampler.submit(ticket(0, n=1), prompt([7]))
    assert len(drain(sampler)) == 1 and len(peer.requests) == 2


def test_completions_of_weights_that_somebody_else_loaded_are_not_used(peer, sampler):
    mixed = answer(
        weight_versions=[{"version": "default", "start": 0, "end": 1}, {"version": "mine", "start": 1, "end": 3}]
    )
    peer.generate = lambda count, request: (200, json.dumps(mixed).encode()) if count == 1 else SOUND
    sampler.submit(ticket(0, n=1), prompt([7]))
    assert len(drain(sampler)) == 1 and len(peer.requests) == 2


def stamped(peer: Peer) -> Reply:
    return 200, json.dumps(answer(weight_versions=[{"version": peer.stamp, "start": 0, "end": 3}])).encode()


UPDATE = ["/pause", "/collective_rpc", "/update_weight_version", "/resume"]


def test_a_restarted_server_gets_its_weights_before_it_is_used(peer, sampler):
    peer.stamp = "default"
    engine = opened(peer.url)
    try:
        assert peer.calls == ["/update_weight_version", *UPDATE]  # a claim, then the load
        peer.generate = lambda count, request: stamped(peer)
        engine.submit(ticket(0, n=2), prompt([7]))
        assert [one.spans for one in drain(engine)] == [((0, 0, 3),)] * 2
        peer.stamp = "default"  # as in a new process
        engine.submit(ticket(1, n=3), prompt([7], 1))
        until = time.monotonic() + 30
        while engine.version is not None and time.monotonic() < until:
            assert not engine.poll(0.05)
        assert engine.version is None and engine.in_flight == 3
        engine.load(0, BASE)
        done = drain(engine)
        assert sorted(one.idx for one in done) == [0, 1, 2]
        assert {one.spans for one in done} == {((0, 0, 3),)}
    finally:
        engine.close()


def test_a_failed_load_restores_the_previous_weights_and_one_cut_off_is_repeated(peer, sampler):
    peer.stamp = "default"
    engine = opened(peer.url)
    try:
        peer.loads = (500, b"no such directory")
        with pytest.raises(EngineError, match=r"could load neither version 1 .*no such directory.* nor again"):
            engine.load(1, BASE)
        peer.loads = None
        with pytest.raises(ServerAway, match=r"version 1 was not loaded: .*/collective_rpc"):
            engine.load(1, BASE)
        assert engine.version is None
        peer.loads, peer.health = (
            (500, b"EngineDeadError"),
            (503, b""),
        )  # it dies in the middle: version 1 is not to blame
        with pytest.raises(ServerAway, match=r"version 1 was not loaded: .*/health: status 503"):
            engine.load(1, BASE)
        peer.loads, peer.health = (200, b"{}"), (200, b"")
        engine.load(1, BASE)
        assert engine.version == 1 and peer.stamp is not None and peer.stamp.endswith("-1")
        peer.stamp = "sieve-00000000-5"
        engine.submit(ticket(0, n=1), prompt([7]))
        with pytest.raises(ServerShared, match=r"loaded by another actor .sieve-00000000-5"):
            drain(engine)
    finally:
        engine.close()


def test_a_completion_that_always_fails_ends_the_actor(peer, sampler):
    peer.generate = lambda count, request: (500, b"this one kills me")
    sampler.submit(ticket(0, n=1), prompt([7]))
    with pytest.raises(ServerUnavailable, match=f"failed {ATTEMPTS} times, last: .*this one kills me") as ended:
        drain(sampler)
    assert ended.value.exit_code == 69 and len(peer.requests) == ATTEMPTS


GIVEN = [(np.array([7]), np.array([5, 6]))]


def scores(peer: Peer) -> Reply:
    """An answer with the log-probs -0.25 and -0.5 for the tokens of GIVEN."""
    choice = answer(
        [9],
        finish_reason="length",
        weight_versions=[{"version": peer.stamp or "default", "start": 0, "end": 1}],
        logprobs={
            "content": [
                {"token_id": 9, "logprob": -1, "rank": 2, "top_logprobs": [{"token_id": 6, "logprob": -0.5, "rank": 1}]}
            ]
        },
    )
    return 200, json.dumps({**choice, "prompt_logprobs": [None, {"5": {"logprob": -0.25, "rank": 1}}]}).encode()


def scored(engine: OpenAIEngine) -> list[float]:
    """Ask until there is an answer, as an actor with a canary does."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            return engine.score(GIVEN)[0].tolist()
        except NoAnswer:
            time.sleep(0.02)
    raise AssertionError("never scored")


@pytest.mark.parametrize("fault", [None, (500, b"oops"), (429, b"later")])
def test_failed_scoring_is_repeated_after_the_server_was_seen_again(peer, sampler, fault):
    peer.generate = lambda count, request: fault if count <= 3 else scores(peer)
    with pytest.raises(NoAnswer, match="given tokens were not scored: POST"):
        sampler.score(GIVEN)
    assert scored(sampler) == [-0.25, -0.5]
    assert len(peer.requests) == 4 and sampler.version == 0  # no request until it was seen again


def test_scoring_that_always_fails_ends_the_actor(peer, sampler):
    peer.generate = lambda count, request: (500, b"this one kills me")
    with pytest.raises(ServerUnavailable, match=f"scoring failed {ATTEMPTS} times in a row, last: .*kills me") as ended:
        scored(sampler)
    assert ended.value.exit_code == 69 and len(peer.requests) == ATTEMPTS


def test_nothing_is_scored_with_the_weights_of_a_restarted_server(peer, sampler):
    peer.stamp = "default"
    engine = opened(peer.url)
    try:
        peer.generate = lambda count, request: scores(peer)
        assert scored(engine) == [-0.25, -0.5]
        peer.stamp = "default"
        until = time.monotonic() + 30
        while engine.version is not None and time.monotonic() < until:
            with pytest.raises(NoAnswer):
                engine.score(GIVEN)
        assert engine.version is None
        engine.load(0, BASE)
        assert scored(engine) == [-0.25, -0.5]
    finally:
        engine.close()


def test_a_missing_server_is_waited_for_and_then_named(peer, monkeypatch):
    monkeypatch.setenv("SERVER_KEY", KEY)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ServerUnavailable, match=rf"outage_seconds is 0.5 .*127.0.0.1:{port}/v1/models"):
        opened(f"http://127.0.0.1:{port}", outage_seconds=0.5)


def test_a_cancelled_completion_is_never_returned(peer, sampler):
    gate = threading.Event()

    def late(count: int, request: dict[str, Any]) -> Reply:
        gate.wait(30)
        return 200, json.dumps(answer()).encode()

    peer.generate = late
    sampler.submit(ticket(0, n=3), prompt([7]))
    sampler.submit(ticket(1, n=1), prompt([7], 1))
    assert sampler.in_flight == 4 and sampler.pinned(0) == 0
    assert sampler.cancel(["0:0"]) == 3
    gate.set()
    assert [one.group_id for one in drain(sampler)] == ["0:1"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"urls": ["http://gpu-1:8000"], "key_env": "K"}, "the key would be sent unencrypted; use https"),
        ({"urls": ["http://me:secret@gpu-1"]}, "a URL with a password would be logged"),
        ({"urls": ["ftp://gpu-1"]}, "is not the URL of a server; write http://host:port"),
        ({"urls": ["http://gpu-1:99999"]}, "is not a URL"),
        ({"urls": ["http://gpu-1:8000/v1/", "http://gpu-1:8000"]}, "names a server twice"),
    ],
)
def test_unsafe_servers_are_refused_in_the_configuration(section, message):
    with pytest.raises(ValidationError, match=message) as refused:
        OpenAISettings.model_validate(section)
    assert "secret" not in str(refused.value.errors(include_input=False, include_context=False))


def test_servers_are_named_with_or_without_v1_and_there_is_one_for_each_actor(tmp_path):
    fine = OpenAISettings(urls=("https://gpu-1:8000/v1/", "http://[::1]:8000"), key_env="K")
    assert fine.urls == ("https://gpu-1:8000", "http://[::1]:8000")
    with pytest.raises(ValidationError, match=r"replicas = 2 and 1 in actor\.openai\.urls: each actor needs a server"):
        tree(tmp_path, BASE, engine="openai", openai={"urls": ["http://gpu-1"]}, replicas=2)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["choices", "token_ids", "logprobs", "content", "finish_reason", "weight_versions", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@pytest.mark.slow
@settings(max_examples=60)
@given(JSON | st.dictionaries(st.sampled_from(sorted(answer()["choices"][0])), JSON).map(lambda some: answer(**some)))
def test_any_answer_is_either_valid_or_refused(body):
    try:
        sampled = wire.sampled(json.dumps(body).encode(), vocabulary=VOCABULARY, ends=[EOS], limit=LIMIT)
    except AnswerUnusable:
        return
    if sampled.finish in ("stop", "length"):
        assert 1 <= len(sampled.tokens) == len(sampled.logprobs) <= LIMIT
        assert np.isfinite(sampled.logprobs).all()
