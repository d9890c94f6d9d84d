"""The vLLM engine: AsyncLLM with continuous batching, on an event loop in its own thread.

    service's thread:  submit ─▶ one request per completion ─▶ loop's thread: AsyncLLM ◀─▶ vLLM's processes: the model
                       poll  ◀─ queue of finished requests ◀───────┘

Each completion is its own request, so that it is returned when it ends; those of a ticket share the prompt's keys and
values through vLLM's prefix cache. New weights are loaded while generation is paused and requests are kept: pause →
load → stamp → resume. vLLM itself reports which weights sampled which token.

The prefix cache is salted by load: a request reuses only keys and values computed for requests that were submitted
under the same load as it. So a token attends to nothing older than the weights that were loaded when its request was
submitted, whether the cache is cleared at a load or kept.

Every call into the loop has a deadline, and its error names what was waited for. A load that fails before the model is
changed keeps the old weights; one that fails later ends the engine, so that half-updated weights are never sampled
from.
"""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from concurrent.futures import TimeoutError as TooLate
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from signal import SIG_BLOCK, SIGINT, pthread_sigmask
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from vllm import SamplingParams
from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs.engine import TokensInput, tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from actor.engine import (
    EngineError,
    Ids,
    ModelUnusable,
    admitted,
    check_scorable,
    check_unpinned,
    completion,
    forbids,
)
from actor.engines.tokenizer import Decode
from actor.engines.vllm import requests
from actor.engines.vllm import worker as vllm_worker
from actor.engines.vllm.patience import Patience
from actor.engines.vllm.progress import Progress
from actor.weights.checks import VersionFiles
from broker.queue.wire import Completion, Prompt, Ticket

START_SECONDS = 3600.0
"""Deadline for opening the model: the largest ones from a slow disk, with the capture of their graphs."""
PAUSE_SECONDS = 300.0
"""Longest deadline for one step of everything that runs, including the longest prefill."""
LOAD_SECONDS = (60.0, 1800.0)
SCORE_SECONDS = (60.0, 600.0)
"""Bounds of the deadlines that follow from what the engine has shown (`Patience`)."""
CONTROL_SECONDS = 60.0
CLOSE_SECONDS = 10.0

T = TypeVar("T")


@dataclass(eq=False)
class _Request:
    ticket: Ticket
    idx: int
    version: int
    """The version loaded when the request was submitted; no token is older."""


class VllmEngine:
    """The vLLM engine; its methods implement `actor.engine.Engine`.

    `arguments`: all arguments of vLLM's engine. `eos`: ids that end an answer (kept in it, with their log-prob).
    `vocabulary`: number of token ids of the model. `clear_cache`: whether keys and values of requests in flight are
    recomputed after a load; without it they stay those of earlier weights, and the log-probs of these requests are
    those of the mixture. Raises ModelUnusable if vLLM cannot open the model.
    """

    def __init__(
        self,
        arguments: dict[str, Any],
        files: VersionFiles,
        decode: Decode,
        *,
        eos: Sequence[int],
        vocabulary: int,
        max_new_tokens: int,
        clear_cache: bool = True,
        name: str = "",
    ) -> None:
        self._files, self._decode, self._name, self._vocabulary = files, decode, name, vocabulary
        self._eos, self._limit, self._clear = frozenset(eos), max_new_tokens, clear_cache
        self._requests: dict[str, _Request] = {}
        self._ended: queue.SimpleQueue[tuple[str, CompletionOutput | Exception]] = queue.SimpleQueue()
        self._count = self._loads = 0
        self._version: int | None = None
        self._adapter: LoRARequest | None = None
        self._scored = 0
        self._progress = Progress()
        self._loading, self._scoring = Patience(*LOAD_SECONDS), Patience(*SCORE_SECONDS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="vllm", daemon=True)
        self._thread.start()
        try:
            self._llm: AsyncLLM = self.run(self._open(arguments), START_SECONDS, "vLLM to open the model")
        except EngineError:
            raise
        except Exception as error:
            raise ModelUnusable(
                f"vLLM cannot serve model.path = {arguments.get('model')}: {error}; see its log lines above"
            ) from error
        self.positions: int = self._llm.model_config.max_model_len
        """The longest prompt and answer together, tokens."""

    # ------------------------------------------------------------------ Engine

    @property
    def version(self) -> int | None:
        return self._version

    @property
    def llm(self) -> AsyncLLM:
        """vLLM itself, for calls that go through `run`."""
        return self._llm

    @property
    def in_flight(self) -> int:
        return len(self._requests)

    @property
    def running(self) -> int:
        return min(self._progress.running, len(self._requests))

    @property
    def tokens(self) -> int:
        return max(0, self._progress.tokens - self._scored)

    def oldest_version(self) -> int | None:
        return min((request.version for request in self._requests.values()), default=None)

    def pinned(self, version: int) -> int:
        return sum(forbids(request.ticket, version) for request in self._requests.values())

    def check(self, directory: Path) -> None:
        self._files.check(directory)

    def load(self, version: int, directory: Path) -> dict[str, float]:
        check_unpinned(self, version)
        return self.switch(version, lambda: self._bring(version, directory))

    def switch(
        self,
        version: int,
        bring: Callable[[], Coroutine[Any, Any, None]],
        broken: Callable[[Exception], Exception] | None = None,
        least_seconds: float = 0.0,
    ) -> dict[str, float]:
        """Pause, `bring` in the weights of `version` and stamp it, resume; returns the seconds of "load" and "pause".

        `bring` has as long as loads so far suggest, and `least_seconds` at least.
        If `bring` fails, this engine ends. With `broken` it stays paused instead, without a version, until files are
        loaded, and the exception that `broken` makes of the error is raised."""
        paused = time.monotonic()
        self.run(
            self._llm.pause_generation(mode="keep", clear_cache=self._clear),
            min(PAUSE_SECONDS, self._progress.patience.seconds),
            "vLLM to pause for weights",
        )
        self._progress.stop()
        still = time.monotonic()
        try:
            seconds = max(self._loading.seconds, least_seconds)
            self.run(bring(), seconds, f"vLLM to load version {version}")
        except Exception as error:
            if broken is not None:
                self._version = None
                raise broken(error) from error
            self.close()
            raise EngineError(
                f"version {version} failed in the middle of loading ({error}); the model may be half updated, so this "
                "engine ends and nothing more is sampled; restart the actor"
            ) from error
        loaded = time.monotonic()
        self._loading.saw(loaded - still)
        self._version, self._loads = version, self._loads + 1
        if self._requests:
            self._progress.start()
        self.run(self._llm.resume_generation(), CONTROL_SECONDS, "vLLM to resume")
        return {"load": loaded - still, "pause": time.monotonic() - paused}

    def submit(self, ticket: Ticket, prompt: Prompt) -> None:
        tokens = admitted(
            ticket,
            prompt,
            loaded=self._version,
            new=self._limit,
            positions=self.positions,
            vocabulary=self._vocabulary,
            whose="the engine",
        )
        assert self._version is not None  # checked by admitted
        started = []
        for idx in ticket.missing:
            self._count += 1
            key = f"{ticket.group_id}/{idx}/{self._count}"
            self._requests[key] = _Request(ticket, idx, self._version)
            started.append((key, requests.sampling(self._eos, self._limit, ticket.seed, idx)))
        self._progress.start()
        self._loop.call_soon_threadsafe(self._start, self._input(tokens), started)

    def cancel(self, group_ids: Collection[str]) -> int:
        gone = [key for key, request in self._requests.items() if request.ticket.group_id in group_ids]
        for key in gone:
            del self._requests[key]
        if not self._requests:
            self._progress.stop()
        if gone:
            self.run(self._llm.abort(gone), CONTROL_SECONDS, "vLLM to abort requests")
        return len(gone)

    def poll(self, seconds: float) -> list[Completion]:
        until = time.monotonic() + seconds
        ended: list[tuple[_Request, CompletionOutput]] = []
        while self._requests:
            try:
                key, outcome = self._ended.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            request = self._requests.pop(key, None)
            if request is None:
                continue  # cancelled
            if isinstance(outcome, Exception) or outcome.finish_reason not in ("stop", "length"):
                reason = outcome if isinstance(outcome, Exception) else f"finish reason {outcome.finish_reason}"
                raise EngineError(f"vLLM aborted a request ({reason}); its log lines above say why; restart the actor")
            ended.append((request, outcome))
        self._watch()
        texts = self._decode([list(output.token_ids) for _, output in ended]) if ended else []
        return [self._completion(*one, text) for one, text in zip(ended, texts, strict=True)]

    def score(self, sequences: Sequence[tuple[Ids, Ids]]) -> list[NDArray[np.float32]]:
        check_scorable(
            sequences,
            loaded=self._version,
            positions=self.positions,
            vocabulary=self._vocabulary,
            whose="the engine",
        )
        begin = time.monotonic()
        found = self.run(self._score_all(sequences), self._scoring.seconds, f"vLLM to score {len(sequences)} sequences")
        self._scoring.saw(time.monotonic() - begin)
        return found

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        self._requests.clear()
        if self._llm.output_handler is not None:  # it would report the end that follows as a crash
            self._loop.call_soon_threadsafe(self._llm.output_handler.cancel)
        # Ends vLLM's processes, by force after the deadline.
        closing = threading.Thread(target=self._llm.shutdown, args=(CLOSE_SECONDS / 2,), daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
        del self._llm  # now, while the modules that its destructor needs still exist
        self._loop.call_soon_threadsafe(self._end)
        self._thread.join(CLOSE_SECONDS)

    # ------------------------------------------------------------------ event loop

    def _serve(self) -> None:
        # Ctrl-C goes to the whole process group, and vLLM's processes must outlive the drain: they inherit this mask.
        resource_tracker.ensure_running()  # starting it later would unblock the signal again
        pthread_sigmask(SIG_BLOCK, {SIGINT})
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def _end(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.call_soon(self._loop.call_soon, self._loop.stop)  # after the cancelled tasks have run

    def run(self, work: Coroutine[Any, Any, T], seconds: float, what: str) -> T:
        """The result of `work`, run on the loop. Raises EngineError naming `what` after `seconds` or if vLLM died."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(seconds)
        except TooLate:
            future.cancel()
            raise EngineError(
                f"waited {seconds:g} s for {what}; check its log lines above and the machine, then restart the actor"
            ) from None
        except EngineDeadError as error:
            raise EngineError(
                f"waited for {what}, but its processes have died; its log lines above say why; restart the actor"
            ) from error

    async def _open(self, arguments: dict[str, Any]) -> AsyncLLM:
        os.environ[vllm_worker.ACTOR] = f"{socket.gethostname()}/{os.getpid()}"
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=[self._progress.of])

    def _input(self, tokens: list[int]) -> TokensInput:
        """A prompt whose keys and values are shared only with requests submitted under the same load. (By load, not by
        version: an evaluation may load an older version again.)"""
        return tokens_input(tokens, cache_salt=f"{self._version}-{self._loads}")

    def _start(self, prompt: TokensInput, started: list[tuple[str, SamplingParams]]) -> None:
        for key, params in started:
            task = self._loop.create_task(self._sample(key, prompt, params))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _sample(self, key: str, prompt: TokensInput, params: SamplingParams) -> None:
        try:
            async for output in self._llm.generate(prompt, params, key, lora_request=self._adapter):
                self._ended.put((key, output.outputs[0]))  # FINAL_ONLY: the only output
        except Exception as error:
            self._ended.put((key, error))

    async def _bring(self, version: int, directory: Path) -> None:
        if self._files.adapters:
            # The requests' own reference must not set load_inplace: the adapter would be read again at every step.
            name, path = "policy", str(directory)
            await self._llm.add_lora(LoRARequest(name, 1, path, load_inplace=True))
            self._adapter = LoRARequest(name, 1, path)
            await self._llm.update_weight_version(str(version))
        else:
            await self._llm.start_weight_update()
            await self._llm.update_weights(WeightTransferUpdateRequest({"directory": str(directory.resolve())}))
            await self._llm.finish_weight_update(str(version))

    async def _score_all(self, sequences: Sequence[tuple[Ids, Ids]]) -> list[NDArray[np.float32]]:
        return await asyncio.gather(*(self._score(*one) for one in sequences))

    async def _score(self, prompt: Ids, answer: Ids) -> NDArray[np.float32]:
        """log π of each token of `answer`, each by a request of its own: as if it had been sampled there."""
        ids = np.concatenate([prompt, answer]).tolist()
        *before, last = range(len(prompt), len(ids))
        # The longest first: its keys and values are reused by all others.
        newest = await self._score_token(ids, last)
        return np.array([*await asyncio.gather(*(self._score_token(ids, at) for at in before)), newest], np.float32)

    async def _score_token(self, ids: list[int], at: int) -> float:
        self._count += 1
        found = float("nan")
        async for output in self._llm.generate(
            self._input(ids[:at]), requests.scoring(ids[at]), f"score/{self._count}", lora_request=self._adapter
        ):
            found = requests.score(output, ids[at])
        self._scored += 1
        return found

    # ------------------------------------------------------------------ requests

    def _watch(self) -> None:
        """Raise EngineError if requests are in flight and no token has come for much longer than ever before."""
        if not self._requests:
            self._progress.stop()
            return
        silent, limit = self._progress.silent, self._progress.patience.seconds
        if silent > limit:
            raise EngineError(
                f"vLLM has sampled nothing for {silent:.0f} s with {len(self._requests)} completions in flight (limit "
                f"{limit:.0f} s, from the time between tokens so far); check its log lines above and the machine, then "
                "restart the actor"
            )

    def _completion(self, request: _Request, output: CompletionOutput, text: str) -> Completion:
        ids = list(output.token_ids)
        return completion(
            request.ticket,
            request.idx,
            ids,
            np.asarray(output.logprobs.logprobs, dtype=np.float32),
            [(int(span.version), span.start, span.end) for span in output.weight_versions],
            stopped=ids[-1] in self._eos,
            text=text,
            actor=self._name,
        )
