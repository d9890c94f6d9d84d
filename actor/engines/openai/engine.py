"""The openai engine: a vLLM server that runs elsewhere, used through HTTP. No model here, only requests and answers.

    service's thread:  submit ─▶ one request per completion ─▶ loop's thread: HTTP ◀─▶ the server
                       poll   ◀─ queue of answers ◀───────────────────┘      └─ once a second: whose weights are these?

A completion is one request, so that it leaves when it ends; those of a ticket share their prompt's keys and values in
the server's prefix cache. Weights change while the server keeps its requests: pause → load → stamp → resume. The stamp
names this engine and the version, and the server reports, token by token, under which stamp it sampled: these are the
spans. What comes back under any other stamp (a server that was started again, weights that somebody else loaded) is
not believed, whatever it is: the completion is sampled again under the same idx and seed.

One engine per server: two would stamp over each other. The first weights are loaded only after a claim that a living
owner sees and ends at, and that a living owner's own update overwrites.

A server that goes away is infrastructure trouble: its completions wait here and are sent again when it is back and has
its weights; after actor.openai.outage_seconds the engine ends with ServerUnavailable and the tickets return.
"""

from __future__ import annotations

import asyncio
import queue
import re
import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from actor.engine import EngineError, Ids, NoAnswer, PromptTooLong, WeightsUnusable, WrongVersion, admitted, forbids
from actor.engines.openai import wire
from actor.engines.openai.http import Http, ServerRefused, ServerUnavailable, Trouble, key_of
from actor.engines.openai.settings import OpenAISettings
from actor.engines.tokenizer import Decode
from actor.weights.checks import VersionFiles
from broker.errors import EX_USAGE
from broker.queue.wire import Completion, Prompt, Ticket, float32, int32

LOOK_SECONDS = 1.0
"""Between two looks at the server's stamp. A claim stands for twice this before it counts."""
CONTROL_SECONDS = 60.0
"""Stamping, resuming; also the pause, which waits for one step of everything that runs."""
PAUSED_SECONDS = 60.0
"""A server found paused is in the middle of an update; or whoever began one is dead: a claim assumes so after this."""
ATTEMPTS = 8
"""What fails this often (a completion, the scoring of given tokens) fails for a reason of its own."""
_OURS = re.compile(r"sieve-([0-9a-f]{8})-([0-9]{1,12}|claim)")


class ServerShared(EngineError):
    """Somebody else loads weights into this engine's server."""

    exit_code: ClassVar[int] = EX_USAGE


class ServerFixed(EngineError):
    """The server cannot be given other weights than those it was started with."""

    exit_code: ClassVar[int] = EX_USAGE


class ServerAway(WeightsUnusable):
    """The server did not answer while weights were brought in; they can be brought again."""


@dataclass(eq=False)
class _Flight:
    """A completion in flight."""

    ticket: Ticket
    idx: int
    prompt: list[int]
    version: int
    """Loaded when it was sent: no token of it is older."""
    task: asyncio.Task[None] | None = None
    attempts: int = 0
    reason: str = ""
    """Why it is to be sampled again; empty while the server has it."""


@dataclass(frozen=True)
class _Sight:
    """What the last look at the server saw."""

    at: float
    stamp: str | None
    refusal: EngineError | None = None


class OpenAIEngine:
    """See the module's docstring; the methods' contract is `actor.engine.Engine`.

    `tokens` counts completions that ended, `oldest_version` is the oldest that one in flight can have a token from: the
    server says both only with the whole answer. `eos`: ids that end an answer. `vocabulary`: ids of the model at
    model.path. Raises ServerRefused, ServerUnavailable and AnswerUnusable when the server cannot be used.
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
        self._me = secrets.token_hex(4)
        self._flights: dict[tuple[str, int], _Flight] = {}
        self._answers: queue.SimpleQueue[tuple[_Flight, int, bytes | Exception]] = queue.SimpleQueue()
        self._version: int | None = None
        self._directory: Path | None = None
        self._sampled = self._unscored = 0
        self._sight = _Sight(float("-inf"), None)
        self._failed = float("-inf")  # when a request last failed: what the server says is news only after that
        self._quiet = asyncio.Lock()
        self._http = Http(url, key_of(settings.key_env), max_batch + 2)
        try:
            served, self._fixed = self._reach()
            self._model, self.positions = served.id, served.max_model_len
        except BaseException:
            self._http.close()
            raise
        asyncio.run_coroutine_threadsafe(self._look_on(), self._http.loop)

    # ------------------------------------------------------------------ what the service sees

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
        if not self._fixed:
            self._files.check(directory)

    def load(self, version: int, directory: Path) -> dict[str, float]:
        pinned = self.pinned(version)
        if pinned:
            raise WrongVersion(f"{pinned} completions in flight may not be sampled with version {version}; poll first")
        if self._fixed:
            if version:
                raise ServerFixed(
                    f"{self._http.url} cannot be given version {version}: it has no /weight_info and serves what it "
                    f"was started with; start it with VLLM_SERVER_DEV_MODE=1 set, or sample version 0 only"
                )
            seconds = {"load": 0.0, "pause": 0.0}
        else:
            seconds = self._bring(version, directory)
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
            whose="the server (--max-model-len)",
        )
        assert self._version is not None  # else it would not have been admitted
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
                continue  # cancelled, or taken back from a server that lost our weights
            sampled = self._take(flight, answer)
            if sampled is not None:
                del self._flights[key]
                self._sampled += len(sampled.tokens)
                done.append((flight, sampled))
        self._mind_the_server()
        texts = self._decode([sampled.tokens for _, sampled in done]) if done else []
        return [self._completion(*one, text) for one, text in zip(done, texts, strict=True)]

    def score(self, sequences: Sequence[tuple[Ids, Ids]]) -> list[NDArray[np.float32]]:
        if self._version is None:
            raise WrongVersion("no weights are loaded, so nothing can be scored; load a version first")
        for number, (prompt, answer) in enumerate(sequences):
            if not (len(prompt) and len(answer) and len(prompt) + len(answer) <= self.positions):
                raise PromptTooLong(
                    f"sequence {number} has {len(prompt)} prompt and {len(answer)} answer tokens; each needs at least "
                    f"one, both together at most the server's {self.positions} positions"
                )
        self._mind_the_server()
        if self._version is None or self._failed > self._sight.at:
            raise NoAnswer(f"{self._http.url} has not its weights, or has not answered since a request failed")
        seconds = self._settings.answer_seconds + CONTROL_SECONDS
        try:
            scores = self._http.wait(self._score(self._version, sequences), seconds, "log-probs of given tokens")
        except Trouble as error:
            self._failed, self._unscored = time.monotonic(), self._unscored + 1
            if self._unscored >= ATTEMPTS:
                raise ServerUnavailable(
                    f"scoring failed {ATTEMPTS} times in a row, last: {error}; look at the server's log"
                ) from None
            raise NoAnswer(f"given tokens were not scored: {error}") from None
        self._unscored = 0
        return scores

    def close(self) -> None:
        self._flights.clear()
        self._http.close()

    # ------------------------------------------------------------------ the server at the start

    def _reach(self) -> tuple[wire.ServedModel, bool]:
        """The model to use, and whether its weights are fixed: the server lacks vLLM's endpoints for them."""
        path = "/v1/models"
        while True:
            try:
                body = self._ask("GET", path, most=1 << 20)
                fixed = self._is_fixed()
                break
            except Trouble as error:
                self._give_up(error)
                time.sleep(min(1.0, self._settings.outage_seconds / 10))
        models = wire.read(wire.Served, body, path).data
        wanted = self._settings.model
        found = [model for model in models if wanted in (None, model.id)]
        if len(found) != 1:
            raise ServerRefused(
                f"{self._http.url} serves {', '.join(model.id[:80] for model in models[:8])}, actor.openai.model is "
                f"{wanted or 'not set'}; name one of them"
            )
        return found[0], fixed

    def _is_fixed(self) -> bool:
        try:
            wire.read(wire.Stamp, self._ask("GET", "/weight_info"), "/weight_info")
        except ServerRefused as error:
            if error.status in (404, 405):
                return True
            raise
        return False

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None, **bounds: Any) -> bytes:
        seconds = bounds.pop("seconds", CONTROL_SECONDS)
        return self._http.wait(self._http.ask(method, path, body, seconds=seconds, **bounds), seconds * 2, path)

    def _give_up(self, error: object) -> None:
        """Raises ServerUnavailable once the server has been away for too long."""
        away = time.monotonic() - self._http.heard
        if away > self._settings.outage_seconds:
            raise ServerUnavailable(
                f"no answer for {away:.0f} s, outage_seconds is {self._settings.outage_seconds:g} ({error}); "
                f"start the server again or raise the limit"
            )

    # ------------------------------------------------------------------ weights

    def _bring(self, version: int, directory: Path) -> dict[str, float]:
        """Load, stamp, resume. A version that the server refuses leaves the one before, if there was one."""
        first = self._directory is None
        try:
            # The watch must not read a stamp that is being changed.
            self._http.wait(self._quiet.acquire(), CONTROL_SECONDS + LOOK_SECONDS, "a look at the server to end")
            try:
                self._own()
                begin = time.monotonic()
                self._ask("POST", "/pause?mode=keep&clear_cache=true")
                loading = time.monotonic()
                try:
                    self._reload(directory)
                except Trouble as error:
                    if not error.status:
                        raise
                    self._ask("GET", "/health")  # Trouble if it was the engine's end, not these weights
                    self._go_back(version, directory, error)
                loaded = time.monotonic()
                self._ask("POST", "/update_weight_version", {"new_version": self._stamp(version)})
                self._sight = _Sight(time.monotonic(), self._stamp(version))
                self._ask("POST", "/resume")
                return {"load": loaded - loading, "pause": time.monotonic() - begin}
            finally:
                self._http.loop.call_soon_threadsafe(self._quiet.release)
        except Trouble as error:
            # What the server holds now is unknown: nothing more is sent before a load that succeeds.
            self._lost(f"a load of version {version} that was cut off")
            self._give_up(error)
            raise ServerAway(f"version {version} was not brought in: {error}") from None
        except WeightsUnusable as error:
            if first:
                raise ServerRefused(str(error)) from None
            raise

    def _reload(self, directory: Path) -> None:
        path = str(self._settings.weights / directory.name if self._settings.weights else directory.resolve())
        call = {"method": "reload_weights", "kwargs": {"weights_path": path}}
        self._ask("POST", "/collective_rpc", call, seconds=self._settings.load_seconds)

    def _go_back(self, version: int, directory: Path, error: Trouble) -> None:
        """The server could not load: let it load what it had, and raise WeightsUnusable."""
        before = self._directory
        state = "it stays paused"
        if before is not None and self._version is not None:
            try:
                self._reload(before)
                self._ask("POST", "/resume")
                state = f"version {self._version} is loaded again"
            except Trouble as second:
                if not second.status:
                    raise
                raise EngineError(
                    f"the server could load neither version {version} ({error}) nor again {before} ({second}); it "
                    f"stays paused: start it again, then the actor"
                ) from None
        raise WeightsUnusable(
            f"the server could not load version {version}: {error}; {state}. It must see the directory "
            f"{self._settings.weights or directory.resolve().parent}: mount it there, or set actor.openai.weights to "
            f"where it does"
        )

    def _stamp(self, what: int | str) -> str:
        return f"sieve-{self._me}-{what}"

    def _own(self) -> None:
        """The server is this engine's to change; raises ServerShared if another one's stamp is on it.

        Without a version of ours on it, it is claimed: a living owner looks every second, sees the claim and ends; one
        in the middle of an update puts its own stamp over the claim."""
        if self._version is not None:
            self._check_owner(self._read_stamp())
            return
        self._ask("POST", "/update_weight_version", {"new_version": self._stamp("claim")})
        until = time.monotonic() + PAUSED_SECONDS
        time.sleep(2 * LOOK_SECONDS)
        while time.monotonic() < until:
            if not wire.read(wire.Paused, self._ask("GET", "/is_paused"), "/is_paused").is_paused:
                break
            time.sleep(LOOK_SECONDS)
        self._check_owner(self._read_stamp())

    def _read_stamp(self) -> str:
        return wire.read(wire.Stamp, self._ask("GET", "/weight_info"), "/weight_info").weight_version

    def _check_owner(self, stamp: str) -> None:
        found = _OURS.fullmatch(stamp)
        if found and found[1] != self._me:
            raise ServerShared(
                f"the weights at {self._http.url} are loaded by another actor ({stamp}); one server takes one actor: "
                f"end one of the two, or give actor.openai.urls a server for each"
            )

    # ------------------------------------------------------------------ the server meanwhile

    async def _look_on(self) -> None:
        """On the loop, for ever: what is the server's stamp?"""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            async with self._quiet:
                at = time.monotonic()
                try:
                    if self._fixed:
                        await self._http.ask("GET", "/health", seconds=CONTROL_SECONDS)
                        self._sight = _Sight(at, None)
                    else:
                        body = await self._http.ask("GET", "/weight_info", seconds=CONTROL_SECONDS)
                        stamp = wire.read(wire.Stamp, body, "/weight_info").weight_version
                        self._sight = _Sight(at, stamp)
                except Trouble:
                    continue  # whether it lasts is judged in poll
                except EngineError as error:
                    self._sight = _Sight(at, None, error)

    def _mind_the_server(self) -> None:
        """Notice a server that was started again or is away; send again what can be. In the service's thread."""
        self._give_up("not even of its health")
        sight = self._sight
        if sight.refusal is not None:
            raise sight.refusal
        if self._version is None:
            return
        if sight.stamp is not None and sight.stamp != self._stamp(self._version):
            self._check_owner(sight.stamp)
            self._lost(f"the server was started again (its weights are {sight.stamp[:40]!r})")
            return
        if sight.at > self._failed:
            self._send_again()

    def _lost(self, reason: str) -> None:
        """The server does not have our weights: take back all it has. Only a load goes on from here."""
        self._version = None
        for flight in self._flights.values():
            self._drop(flight)
            flight.reason = flight.reason or reason

    def _send_again(self) -> None:
        for flight in self._flights.values():
            if flight.reason and self._version is not None:
                flight.reason, flight.version = "", self._version
                self._send(flight)

    # ------------------------------------------------------------------ requests and what they give

    def _send(self, flight: _Flight) -> None:
        flight.attempts += 1
        ticket, attempt = flight.ticket, flight.attempts
        body = wire.request(self._model, flight.prompt, self._eos, self._limit, ticket.seed, flight.idx)

        def start() -> None:
            flight.task = self._http.loop.create_task(self._fetch(flight, attempt, body))

        self._http.loop.call_soon_threadsafe(start)

    async def _fetch(self, flight: _Flight, attempt: int, body: dict[str, Any]) -> None:
        answer: bytes | Exception
        try:
            answer = await self._generate(body, self._limit)
        except (Trouble, EngineError) as error:
            answer = error
        self._answers.put((flight, attempt, answer))

    async def _generate(self, body: dict[str, Any], tokens: int) -> bytes:
        seconds = self._settings.answer_seconds
        return await self._http.ask("POST", wire.GENERATE, body, seconds=seconds, most=wire.most_bytes(tokens))

    def _drop(self, flight: _Flight) -> None:
        """Close its connection; the server then stops sampling it."""

        def stop() -> None:
            if flight.task is not None:
                flight.task.cancel()

        self._http.loop.call_soon_threadsafe(stop)

    def _take(self, flight: _Flight, answer: bytes | Exception) -> wire.Sampled | None:
        """What was sampled; None when it is to be sampled again. Raises EngineError when that would not help."""
        if isinstance(answer, Trouble):
            self._again(flight, str(answer))
            return None
        if isinstance(answer, Exception):
            raise answer
        sampled = wire.sampled(answer, vocabulary=self._vocabulary, ends=self._eos, limit=self._limit)
        if sampled.finish not in ("stop", "length"):
            self._again(flight, f"the server gave it up ({sampled.finish[:40]})")
            return None
        if not self._fixed and sampled.spans is None:
            raise wire.AnswerUnusable(
                f"{self._http.url} does not say which weights sampled which token (weight_versions); use vLLM 0.32"
            )
        if any(version is None or forbids(flight.ticket, version) for version, _, _ in self._spans(sampled)):
            self._again(flight, f"sampled under {[stamp[:40] for stamp, _, _ in sampled.spans or ()][:4]}")
            return None
        return sampled

    def _again(self, flight: _Flight, reason: str) -> None:
        if flight.attempts >= ATTEMPTS:
            raise ServerUnavailable(
                f"completion {flight.idx} of {flight.ticket.group_id} failed {ATTEMPTS} times, last: {reason}; "
                f"look at the server's log"
            )
        flight.reason, self._failed = reason, time.monotonic()

    def _spans(self, sampled: wire.Sampled) -> list[tuple[int | None, int, int]]:
        """The server's spans with versions in place of stamps; None for a stamp that is not this engine's."""
        if self._fixed:
            stamps = {stamp for stamp, _, _ in sampled.spans or ()}
            whole = len(stamps) < 2 and not any(_OURS.fullmatch(stamp) for stamp in stamps)
            return [(0 if whole else None, 0, len(sampled.tokens))]
        spans: list[tuple[int | None, int, int]] = []
        for stamp, start, end in sampled.spans or ():
            found = _OURS.fullmatch(stamp)
            ours = found is not None and found[1] == self._me and found[2] != "claim"
            spans.append((int(found[2]) if ours and found else None, start, end))
        return spans

    def _completion(self, flight: _Flight, sampled: wire.Sampled, text: str) -> Completion:
        ticket = flight.ticket
        return Completion(
            group_id=ticket.group_id,
            lane=ticket.lane,
            prompt=ticket.prompt,
            idx=flight.idx,
            n=ticket.n,
            tokens=int32(sampled.tokens),
            logprobs=float32(sampled.logprobs),
            spans=tuple((version, start, end) for version, start, end in self._spans(sampled) if version is not None),
            finish="stop" if sampled.finish == "stop" else "length",
            text=text,
            actor=self._name,
        )

    async def _score(self, version: int, sequences: Sequence[tuple[Ids, Ids]]) -> list[NDArray[np.float32]]:
        return await asyncio.gather(*(self._score_one(version, *one) for one in sequences))

    async def _score_one(self, version: int, prompt: Ids, answer: Ids) -> NDArray[np.float32]:
        tokens = [int(token) for token in (*prompt, *answer)]
        body = await self._generate(wire.scoring(self._model, tokens), len(tokens))
        logprobs, stamps = wire.scored(body, tokens, len(prompt))
        if not self._fixed and stamps != [self._stamp(version)]:
            raise Trouble(f"{self._http.url} scored under {stamps}, not under version {version}")
        return logprobs
