"""The openai engine: a vLLM server that runs elsewhere, used through HTTP.

    service's thread:  submit ─▶ one request per completion ─▶ loop's thread: HTTP ◀─▶ the server
                       poll   ◀─ queue of answers ◀───────────────────┘      └─ once a second: its stamp (server.py)

Each completion is its own request, so that it is returned when it ends; those of a ticket share their prompt's keys and
values in the server's prefix cache. The server reports, token by token, under which stamp it sampled: these are the
spans. An answer under any other stamp (of a restarted server, or of weights that somebody else loaded) is not used:
the completion is sampled again with the same idx and seed.

While the server is away, its completions wait here; they are sent again once it is back and has its weights. After
actor.openai.outage_seconds the engine ends with ServerUnavailable and the tickets return.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actor.engine import EngineError, Ids, NoAnswer, admitted, check_scorable, check_unpinned, completion, forbids
from actor.engines.openai import wire
from actor.engines.openai.http import ServerUnavailable, Trouble
from actor.engines.openai.server import CONTROL_SECONDS, Server, ServerAway, ServerFixed, is_stamp
from actor.engines.openai.settings import OpenAISettings
from actor.engines.tokenizer import Decode
from actor.weights.checks import VersionFiles
from broker.queue.wire import Completion, Prompt, Ticket

ATTEMPTS = 8
"""Attempts at one completion, and at scoring, before the engine ends: then the failures have a lasting cause."""


@dataclass(eq=False)
class _Flight:
    """A completion in flight."""

    ticket: Ticket
    idx: int
    prompt: list[int]
    version: int
    """The version loaded when it was sent; no token is older."""
    task: asyncio.Task[None] | None = None
    attempts: int = 0
    reason: str = ""
    """Why it must be sampled again; empty while the server has it."""


class OpenAIEngine:
    """The openai engine; its methods implement `actor.engine.Engine`.

    `tokens` counts the tokens of finished completions, and `oldest_version` is the oldest version that a completion in
    flight can have a token from, because the server reports both only with the whole answer. `eos`: ids that end an
    answer. `vocabulary`: number of token ids of the model at model.path. Raises ServerRefused, ServerUnavailable and
    AnswerUnusable if the server cannot be used.
    """

    def __init__(
        self,
        settings: OpenAISettings,
        url: str,
        files: VersionFiles,
        decode: Decode,
        *,
        eos: Sequence[int],
        vocabulary: int,
        max_new_tokens: int,
        max_batch: int,
        name: str = "",
    ) -> None:
        self._settings, self._files, self._decode, self._name = settings, files, decode, name
        self._eos, self._vocabulary, self._limit = frozenset(eos), vocabulary, max_new_tokens
        self._max_batch = max_batch
        self._flights: dict[tuple[str, int], _Flight] = {}
        self._answers: queue.SimpleQueue[tuple[_Flight, int, bytes | Exception]] = queue.SimpleQueue()
        self._version: int | None = None
        self._directory: Path | None = None
        self._sampled = self._unscored = 0
        self._failed = float("-inf")
        """When a request last failed (monotonic seconds): only a later look shows that the server works again."""
        self._server = Server(settings, url, max_batch + 2)
        self.positions: int = self._server.positions
        """The longest prompt and answer together, tokens."""

    # ------------------------------------------------------------------ Engine

    @property
    def version(self) -> int | None:
        return self._version

    @property
    def in_flight(self) -> int:
        return len(self._flights)

    @property
    def running(self) -> int:
        return min(self._max_batch, sum(not flight.reason for flight in self._flights.values()))

    @property
    def tokens(self) -> int:
        return self._sampled

    def oldest_version(self) -> int | None:
        return min((flight.version for flight in self._flights.values()), default=None)

    def pinned(self, version: int) -> int:
        return sum(forbids(flight.ticket, version) for flight in self._flights.values())

    def check(self, directory: Path) -> None:
        if not self._server.fixed:
            self._files.check(directory)

    def load(self, version: int, directory: Path) -> dict[str, float]:
        check_unpinned(self, version)
        server = self._server
        if server.fixed:
            if version:
                raise ServerFixed(
                    f"{server.http.url} cannot load version {version}: it has no /weight_info and serves the weights "
                    f"it was started with; start it with VLLM_SERVER_DEV_MODE=1 set, or sample version 0 only"
                )
            seconds = {"load": 0.0, "pause": 0.0}
        else:
            try:
                seconds = server.load(version, directory, loaded=self._version, previous=self._directory)
            except (ServerAway, ServerUnavailable):
                # The server's weights are unknown now: nothing more is sent before a load succeeds.
                self._lost(f"a load of version {version} that was cut off")
                raise
        self._version, self._directory = version, directory
        self._send_again()
        return seconds

    def submit(self, ticket: Ticket, prompt: Prompt) -> None:
        tokens = admitted(
            ticket,
            prompt,
            loaded=self._version,
            new=self._limit,
            positions=self.positions,
            vocabulary=self._vocabulary,
            whose="the server (--max-model-len)",
        )
        assert self._version is not None  # checked by admitted
        for idx in ticket.missing:
            flight = self._flights[ticket.group_id, idx] = _Flight(ticket, idx, tokens, self._version)
            self._send(flight)

    def cancel(self, group_ids: Collection[str]) -> int:
        gone = [key for key in self._flights if key[0] in group_ids]
        for key in gone:
            self._drop(self._flights.pop(key))
        return len(gone)

    def poll(self, seconds: float) -> list[Completion]:
        until = time.monotonic() + seconds
        done: list[tuple[_Flight, wire.Sampled]] = []
        while self._flights:
            try:
                flight, attempt, answer = self._answers.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            key = flight.ticket.group_id, flight.idx
            if self._flights.get(key) is not flight or flight.reason or attempt != flight.attempts:
                continue  # cancelled, or withdrawn from a server that lost our weights
            sampled = self._take(flight, answer)
            if sampled is not None:
                del self._flights[key]
                self._sampled += len(sampled.tokens)
                done.append((flight, sampled))
        self._check_server()
        texts = self._decode([sampled.tokens for _, sampled in done]) if done else []
        return [self._completion(*one, text) for one, text in zip(done, texts, strict=True)]

    def score(self, sequences: Sequence[tuple[Ids, Ids]]) -> list[NDArray[np.float32]]:
        check_scorable(
            sequences,
            loaded=self._version,
            positions=self.positions,
            vocabulary=self._vocabulary,
            whose="the server",
        )
        self._check_server()
        if self._version is None or self._failed > self._server.sight.at:
            raise NoAnswer(
                f"{self._server.http.url} does not have its weights, or has not answered since a request failed"
            )
        seconds = self._settings.answer_seconds + CONTROL_SECONDS
        try:
            scores = self._server.http.wait(self._score(self._version, sequences), seconds, "log-probs of given tokens")
        except Trouble as error:
            self._failed, self._unscored = time.monotonic(), self._unscored + 1
            if self._unscored >= ATTEMPTS:
                raise ServerUnavailable(
                    f"scoring failed {ATTEMPTS} times in a row, last: {error}; see the server's log"
                ) from None
            raise NoAnswer(f"given tokens were not scored: {error}") from None
        self._unscored = 0
        return scores

    def close(self) -> None:
        self._flights.clear()
        self._server.close()

    # ------------------------------------------------------------------ state of the server

    def _check_server(self) -> None:
        """Notice a server that was restarted or is away, and send again what failed. Called in the service's thread."""
        self._server.check_outage("its health check fails too")
        sight = self._server.sight
        if sight.refusal is not None:
            raise sight.refusal
        if self._version is None:
            return
        if sight.stamp is not None and sight.stamp != self._server.stamp(self._version):
            self._server.check_owner(sight.stamp)
            self._lost(f"the server was restarted (its weights are {sight.stamp[:40]!r})")
            return
        if sight.at > self._failed:
            self._send_again()

    def _lost(self, reason: str) -> None:
        """The server does not have our weights: cancel all requests. Sampling continues after the next load."""
        self._version = None
        for flight in self._flights.values():
            self._drop(flight)
            flight.reason = flight.reason or reason

    def _send_again(self) -> None:
        for flight in self._flights.values():
            if flight.reason and self._version is not None:
                flight.reason, flight.version = "", self._version
                self._send(flight)

    # ------------------------------------------------------------------ requests

    def _send(self, flight: _Flight) -> None:
        flight.attempts += 1
        ticket, attempt = flight.ticket, flight.attempts
        body = wire.request(self._server.model, flight.prompt, self._eos, self._limit, ticket.seed, flight.idx)

        def start() -> None:
            flight.task = self._server.http.loop.create_task(self._fetch(flight, attempt, body))

        self._server.http.loop.call_soon_threadsafe(start)

    async def _fetch(self, flight: _Flight, attempt: int, body: dict[str, Any]) -> None:
        answer: bytes | Exception
        try:
            answer = await self._generate(body, self._limit)
        except (Trouble, EngineError) as error:
            answer = error
        self._answers.put((flight, attempt, answer))

    async def _generate(self, body: dict[str, Any], tokens: int) -> bytes:
        seconds = self._settings.answer_seconds
        return await self._server.http.ask("POST", wire.GENERATE, body, seconds=seconds, most=wire.most_bytes(tokens))

    def _drop(self, flight: _Flight) -> None:
        """Close the connection of a request; the server then stops sampling it."""

        def stop() -> None:
            if flight.task is not None:
                flight.task.cancel()

        self._server.http.loop.call_soon_threadsafe(stop)

    def _take(self, flight: _Flight, answer: bytes | Exception) -> wire.Sampled | None:
        """The completion in an answer; None if it must be sampled again. Raises EngineError if that would not help."""
        if isinstance(answer, Trouble):
            self._again(flight, str(answer))
            return None
        if isinstance(answer, Exception):
            raise answer
        sampled = wire.sampled(answer, vocabulary=self._vocabulary, ends=self._eos, limit=self._limit)
        if sampled.finish not in ("stop", "length"):
            self._again(flight, f"the server aborted it ({sampled.finish[:40]})")
            return None
        if not self._server.fixed and sampled.spans is None:
            raise wire.AnswerUnusable(
                f"{self._server.http.url} does not report which weights sampled which token (weight_versions); use "
                "vLLM 0.32"
            )
        if any(version is None or forbids(flight.ticket, version) for version, _, _ in self._spans(sampled)):
            self._again(flight, f"sampled under {[stamp[:40] for stamp, _, _ in sampled.spans or ()][:4]}")
            return None
        return sampled

    def _again(self, flight: _Flight, reason: str) -> None:
        if flight.attempts >= ATTEMPTS:
            raise ServerUnavailable(
                f"completion {flight.idx} of {flight.ticket.group_id} failed {ATTEMPTS} times, last: {reason}; "
                "see the server's log"
            )
        flight.reason, self._failed = reason, time.monotonic()

    def _spans(self, sampled: wire.Sampled) -> list[tuple[int | None, int, int]]:
        """The server's spans with versions in place of stamps; None for stamps of anybody else."""
        if self._server.fixed:
            stamps = {stamp for stamp, _, _ in sampled.spans or ()}
            whole = len(stamps) < 2 and not any(map(is_stamp, stamps))
            return [(0 if whole else None, 0, len(sampled.tokens))]
        return [(self._server.version_of(stamp), start, end) for stamp, start, end in sampled.spans or ()]

    def _completion(self, flight: _Flight, sampled: wire.Sampled, text: str) -> Completion:
        return completion(
            flight.ticket,
            flight.idx,
            sampled.tokens,
            sampled.logprobs,
            [(version, start, end) for version, start, end in self._spans(sampled) if version is not None],
            stopped=sampled.finish == "stop",
            text=text,
            actor=self._name,
        )

    async def _score(self, version: int, sequences: Sequence[tuple[Ids, Ids]]) -> list[NDArray[np.float32]]:
        return await asyncio.gather(*(self._score_one(version, *one) for one in sequences))

    async def _score_one(self, version: int, prompt: Ids, answer: Ids) -> NDArray[np.float32]:
        tokens = [int(token) for token in (*prompt, *answer)]
        body = await self._generate(wire.scoring(self._server.model, tokens), len(tokens))
        logprobs, stamps = wire.scored(body, tokens, len(prompt))
        if not self._server.fixed and stamps != [self._server.stamp(version)]:
            raise Trouble(f"{self._server.http.url} scored under {stamps}, not under version {version}")
        return logprobs
