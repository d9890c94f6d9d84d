"""The vLLM engine: AsyncLLM with continuous batching, on an event loop in a thread of its own.

    service's thread:  submit ─▶ one request per completion ─▶ loop's thread: AsyncLLM ◀─▶ vLLM's processes: the model
                       poll  ◀─ queue of what ended ◀──────────────┘

A completion is one request of its own, so that it leaves when it ends; those of a ticket share the prompt's keys and
values through vLLM's prefix cache. New weights come in while generation is paused, requests keep their place: pause →
load → stamp → resume. Which weights sampled which token is what vLLM itself reports.

Every call into the loop has a deadline and a name. A load that fails before the model is touched leaves the old
weights; one that fails later ends the engine: half-updated weights are never sampled from.
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
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase

from actor.engine import (
    EngineError,
    Ids,
    ModelUnusable,
    PromptTooLong,
    WeightsUnusable,
    WrongVersion,
    admitted,
    forbids,
    request_seed,
)
from actor.engines.tokenizer import Decode
from actor.engines.vllm import worker as vllm_worker
from actor.weights.checks import VersionFiles
from broker.queue.wire import Completion, Prompt, Ticket, float32, int32

START_SECONDS = 3600.0
"""Opening the largest models from a slow disk, and capturing their graphs."""
PAUSE_SECONDS = 300.0
"""One step of everything that runs, the longest prefill included."""
LOAD_SECONDS = 1800.0
CONTROL_SECONDS = 60.0
SCORE_SECONDS = 600.0
STALL_SECONDS = 900.0
"""Requests in flight and not one token for so long: the engine hangs."""
CLOSE_SECONDS = 10.0

T = TypeVar("T")


@dataclass(eq=False)
class _Request:
    ticket: Ticket
    idx: int
    version: int
    """Loaded when it was submitted: no token of it is older."""


class VllmEngine:
    """See the module's docstring; the methods' contract is `actor.engine.Engine`.

    `arguments`: every argument of vLLM's engine. `eos`: ids that end an answer (kept in it, with their log-prob).
    `clear_cache`: on a load, keys and values of all that runs are computed again; else they stay those of the weights
    that made them, and log-probs are the mixture's. Raises ModelUnusable when vLLM cannot open the model.
    """

    def __init__(
        self,
        arguments: dict[str, Any],
        files: VersionFiles,
        decode: Decode,
        *,
        eos: Sequence[int],
        max_new_tokens: int,
        clear_cache: bool = True,
        name: str = "",
    ) -> None:
        self._files, self._decode, self._name = files, decode, name
        self._eos, self._limit, self._clear = frozenset(eos), max_new_tokens, clear_cache
        self._requests: dict[str, _Request] = {}
        self._ended: queue.SimpleQueue[tuple[str, CompletionOutput | Exception]] = queue.SimpleQueue()
        self._count = 0
        self._version: int | None = None
        self._adapter: LoRARequest | None = None
        self._scored = 0
        self._moved = (0, time.monotonic())
        self._progress = _Progress()
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
                f"vLLM cannot serve model.path = {arguments.get('model')}: {error}; its own lines above say more"
            ) from error
        self.positions: int = self._llm.model_config.max_model_len
        """The longest prompt and answer together, tokens."""

    # ------------------------------------------------------------------ what the service sees

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
        pinned = self.pinned(version)
        if pinned:
            raise WrongVersion(f"{pinned} completions in flight may not be sampled with version {version}; poll first")
        return self.switch(version, lambda: self._bring(version, directory))

    def switch(
        self,
        version: int,
        bring: Callable[[], Coroutine[Any, Any, None]],
        broken: Callable[[Exception], Exception] | None = None,
    ) -> dict[str, float]:
        """Pause, `bring` the weights of `version` in and stamp it, resume; seconds of "load" and "pause".

        When that fails, this engine ends; with `broken` it stays paused, without a version, until files are loaded,
        and what `broken` makes of the error is raised."""
        paused = time.monotonic()
        self.run(
            self._llm.pause_generation(mode="keep", clear_cache=self._clear), PAUSE_SECONDS, "vLLM to pause for weights"
        )
        still = time.monotonic()
        try:
            self.run(bring(), LOAD_SECONDS, f"vLLM to load version {version}")
        except Exception as error:
            if broken is not None:
                self._version = None
                raise broken(error) from error
            self.close()
            raise EngineError(
                f"version {version} failed in the middle of loading ({error}); the model may be half updated, so this "
                f"engine ends and nothing more is sampled: start the actor again"
            ) from error
        loaded = time.monotonic()
        self._version = version
        self.run(self._llm.resume_generation(), CONTROL_SECONDS, "vLLM to resume")
        return {"load": loaded - still, "pause": time.monotonic() - paused}

    def submit(self, ticket: Ticket, prompt: Prompt) -> None:
        tokens = admitted(
            ticket, prompt, loaded=self._version, new=self._limit, positions=self.positions, whose="the engine"
        )
        assert self._version is not None  # else it would not have been admitted
        started = []
        for idx in ticket.missing:
            self._count += 1
            key = f"{ticket.group_id}/{idx}/{self._count}"
            self._requests[key] = _Request(ticket, idx, self._version)
            started.append((key, self._params(ticket.seed, idx)))
        self._loop.call_soon_threadsafe(self._start, tokens, started)

    def cancel(self, group_ids: Collection[str]) -> int:
        gone = [key for key, request in self._requests.items() if request.ticket.group_id in group_ids]
        for key in gone:
            del self._requests[key]
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
                raise EngineError(
                    f"vLLM gave up a request ({reason}); its own lines above say why: start the actor again"
                )
            ended.append((request, outcome))
        self._watch()
        texts = self._decode([list(output.token_ids) for _, output in ended]) if ended else []
        return [self._completion(*one, text) for one, text in zip(ended, texts, strict=True)]

    def score(self, sequences: Sequence[tuple[Ids, Ids]]) -> list[NDArray[np.float32]]:
        if self._version is None:
            raise WrongVersion("no weights are loaded, so nothing can be scored; load a version first")
        for number, (prompt, answer) in enumerate(sequences):
            if not (len(prompt) and len(answer) and len(prompt) + len(answer) <= self.positions):
                raise PromptTooLong(
                    f"sequence {number} has {len(prompt)} prompt and {len(answer)} answer tokens; each needs at least "
                    f"one, both together at most the engine's {self.positions} positions"
                )
        what = f"vLLM to score {len(sequences)} sequences"
        return [self.run(self._score(*one), SCORE_SECONDS, what) for one in sequences]

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        self._requests.clear()
        if self._llm.output_handler is not None:  # it would log the end that follows as its processes' death
            self._loop.call_soon_threadsafe(self._llm.output_handler.cancel)
        # Ends the engine's processes, by force after the deadline.
        closing = threading.Thread(target=self._llm.shutdown, args=(CLOSE_SECONDS / 2,), daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
        del self._llm  # now, while the modules that its destructor needs are there
        self._loop.call_soon_threadsafe(self._end)
        self._thread.join(CLOSE_SECONDS)

    # ------------------------------------------------------------------ the loop's thread

    def _serve(self) -> None:
        # Ctrl-C goes to the whole process group; vLLM's processes, which inherit the mask, must outlive the drain.
        resource_tracker.ensure_running()  # else its start would lift the mask again
        pthread_sigmask(SIG_BLOCK, {SIGINT})
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def _end(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.call_soon(self._loop.call_soon, self._loop.stop)  # the cancelled have their turn first

    def run(self, work: Coroutine[Any, Any, T], seconds: float, what: str) -> T:
        """`work` on the loop. Raises EngineError, naming what was waited for: after `seconds`, or when vLLM is dead."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(seconds)
        except TooLate:
            future.cancel()
            raise EngineError(
                f"waited {seconds:g} s for {what}; look at its lines above and at the machine, then start the actor "
                f"again"
            ) from None
        except EngineDeadError as error:
            raise EngineError(
                f"waited for {what}, but its processes have died; its lines above say why: start the actor again"
            ) from error

    async def _open(self, arguments: dict[str, Any]) -> AsyncLLM:
        os.environ[vllm_worker.ACTOR] = f"{socket.gethostname()}/{os.getpid()}"
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=[self._progress.of])

    def _start(self, tokens: list[int], started: list[tuple[str, SamplingParams]]) -> None:
        for key, params in started:
            task = self._loop.create_task(self._sample(key, tokens, params))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _sample(self, key: str, tokens: list[int], params: SamplingParams) -> None:
        try:
            async for output in self._llm.generate(tokens_input(tokens), params, key, lora_request=self._adapter):
                self._ended.put((key, output.outputs[0]))  # FINAL_ONLY: there is one
        except Exception as error:
            self._ended.put((key, error))

    async def _bring(self, version: int, directory: Path) -> None:
        if self._files.adapters:
            # The requests' own reference must not say load_inplace: it would be read again with every step.
            name, path = "policy", str(directory)
            await self._llm.add_lora(LoRARequest(name, 1, path, load_inplace=True))
            self._adapter = LoRARequest(name, 1, path)
            await self._llm.update_weight_version(str(version))
        else:
            await self._llm.start_weight_update()
            await self._llm.update_weights(WeightTransferUpdateRequest({"directory": str(directory.resolve())}))
            await self._llm.finish_weight_update(str(version))

    async def _score(self, prompt: Ids, answer: Ids) -> NDArray[np.float32]:
        # The last token is asked of the one that is sampled after the rest: the whole may fill all positions.
        ids = np.concatenate([prompt, answer]).tolist()
        params = SamplingParams(
            temperature=1.0, max_tokens=1, detokenize=False, prompt_logprobs=0, logprob_token_ids=ids[-1:],
            output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        self._count += 1
        scores: list[float] = []
        async for output in self._llm.generate(
            tokens_input(ids[:-1]), params, f"score/{self._count}", lora_request=self._adapter
        ):
            before = output.prompt_logprobs or []
            scores = [before[at][ids[at]].logprob for at in range(len(prompt), len(ids) - 1)]
            scores.append(output.outputs[0].logprobs[0][ids[-1]].logprob)
        self._scored += 1
        return np.array(scores, dtype=np.float32)

    # ------------------------------------------------------------------ requests and what they give

    def _params(self, seed: int, idx: int) -> SamplingParams:
        """The policy's own distribution, ended by the run's end tokens and by nothing else."""
        return SamplingParams(
            temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, max_tokens=self._limit, stop_token_ids=sorted(self._eos),
            ignore_eos=True,  # the tokenizer's and generation_config's own; the run's are above
            logprobs=0, flat_logprobs=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY,
            seed=request_seed(seed, idx), skip_clone=True,
        )  # fmt: skip

    def _watch(self) -> None:
        """Raises EngineError when requests are in flight and no token comes."""
        now, tokens = time.monotonic(), self._progress.tokens
        if tokens != self._moved[0] or not self._requests:
            self._moved = tokens, now
        elif now - self._moved[1] > STALL_SECONDS:
            raise EngineError(
                f"vLLM has sampled nothing for {STALL_SECONDS:g} s with {len(self._requests)} completions in flight; "
                f"look at its lines above and at the machine, then start the actor again"
            )

    def _completion(self, request: _Request, output: CompletionOutput, text: str) -> Completion:
        ticket, ids = request.ticket, list(output.token_ids)
        scores = np.asarray(output.logprobs.logprobs, dtype=np.float32)
        spans = tuple((int(span.version), span.start, span.end) for span in output.weight_versions)
        if not np.isfinite(scores).all():
            raise WeightsUnusable(
                f"versions {[version for version, _, _ in spans]} gave a log-prob that is not finite "
                f"for {ticket.group_id}; use model.dtype: float32, or a lower learning rate"
            )
        return Completion(
            group_id=ticket.group_id,
            lane=ticket.lane,
            prompt=ticket.prompt,
            idx=request.idx,
            n=ticket.n,
            tokens=int32(ids),
            logprobs=float32(scores),
            spans=spans,
            finish="stop" if ids[-1] in self._eos else "length",
            text=text,
            actor=self._name,
        )


class _Progress:
    """Tokens sampled and requests running, as vLLM counts them."""

    def __init__(self) -> None:
        self.tokens = 0
        self._running: dict[int, int] = {}

    @property
    def running(self) -> int:
        return sum(self._running.values())

    def of(self, config: Any, engine: int = 0) -> StatLoggerBase:
        """What vLLM calls to make one engine core's logger."""
        progress = self

        class Logger(StatLoggerBase):  # type: ignore[misc]
            def __init__(self) -> None:
                """Counts from zero."""

            def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx=0) -> None:  # type: ignore[no-untyped-def]  # vLLM's own types, unstable by its own word
                if scheduler_stats is not None:
                    progress._running[engine] = scheduler_stats.num_running_reqs
                if iteration_stats is not None:
                    progress.tokens += iteration_stats.num_generation_tokens

            def log_engine_initialized(self) -> None:
                """The service logs its own start."""

        return Logger()
