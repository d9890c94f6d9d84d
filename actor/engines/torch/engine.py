"""The torch engine, the small default: a transformers model, sampled with continuous batching.

Rows are running completions; they always occupy slots 0 … n−1 of one KV cache. A prompt is prefilled once and its keys
and values are copied to every completion of its group. A row is removed as soon as it ends: the last rows move into the
holes, and waiting completions take the free slots while the others continue. New weights are loaded between two tokens,
and the keys and values of all running completions are recomputed, so each token's log-prob is exactly that of the
version in its span.

Little Python runs per step: sampling, end detection and bookkeeping are a few tensor operations on all rows. The engine
does no I/O except reading weights, and always samples at temperature 1.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from actor.engine import Ids, ModelUnusable, admitted, check_scorable, check_unpinned, completion, forbids
from actor.engines.tokenizer import Decode
from actor.engines.torch.model import Policy, Prefill
from actor.engines.torch.sampling import draw, uniforms
from broker.queue.wire import Completion, Prompt, Ticket


@dataclass(eq=False)
class _Group:
    """A ticket being sampled: its prompt, the completions not started, and where its prompt's keys and values are."""

    ticket: Ticket
    prompt: list[int]
    waiting: deque[int]
    prefill: tuple[Prefill, int] | None = None


@dataclass(eq=False)
class _Row:
    """A running completion; its tokens and log-probs are in the engine's tensors, in the row of its slot."""

    group: _Group
    idx: int
    starts: list[tuple[int, int]] = field(default_factory=list)
    """(version, first token sampled with it) of each span."""


class TorchEngine:
    """The torch engine; its methods implement `actor.engine.Engine`.

    `eos`: ids that end an answer (kept in it, with their log-prob). `max_new_tokens`: finish `length` at this many.
    `admit_share`: free share of the batch at which waiting completions are started; a prefill pass has a fixed cost, so
    one pass for several prompts is faster than one per freed slot.
    """

    def __init__(
        self,
        policy: Policy,
        decode: Decode,
        *,
        eos: Sequence[int],
        max_new_tokens: int,
        max_batch: int,
        admit_share: float = 0.25,
        name: str = "",
    ) -> None:
        outside = [token for token in eos if not 0 <= token < policy.vocabulary]
        if outside:
            raise ModelUnusable(
                f"end token {outside[0]} is outside the model's vocabulary of {policy.vocabulary}; the tokenizer at "
                "model.path belongs to another model: use this model's"
            )
        self._policy, self._decode, self._name = policy, decode, name
        self._limit, self._max_batch = max_new_tokens, max_batch
        self._admit = max(1, round(max_batch * admit_share))
        device = policy.device
        self._ends = torch.zeros(policy.vocabulary, dtype=torch.bool, device=device)
        self._ends[list(eos)] = True
        self._end_ids = frozenset(eos)
        self._slots = policy.slots(max_batch)
        self._rows: list[_Row] = []
        self._groups: deque[_Group] = deque()
        self._tokens = torch.zeros(max_batch, max_new_tokens, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(max_batch, max_new_tokens, dtype=torch.float32, device=device)
        self._uniforms = torch.zeros(max_batch, max_new_tokens, dtype=torch.float64, device=device)
        self._last = torch.zeros(max_batch, dtype=torch.int64, device=device)
        self._position = torch.zeros(max_batch, dtype=torch.int64, device=device)
        self._made = torch.zeros(max_batch, dtype=torch.int64, device=device)
        self._index = torch.arange(max_batch, device=device)
        self._width = 0
        self._ended: list[tuple[_Row, list[int], np.ndarray[Any, Any]]] = []
        self._version: int | None = None
        self._sampled = 0

    # ------------------------------------------------------------------ Engine

    @property
    def version(self) -> int | None:
        return self._version

    @property
    def in_flight(self) -> int:
        return len(self._rows) + len(self._ended) + sum(len(group.waiting) for group in self._groups)

    @property
    def running(self) -> int:
        return len(self._rows)

    @property
    def tokens(self) -> int:
        return self._sampled

    def oldest_version(self) -> int | None:
        return min((row.starts[0][0] for row in self._rows), default=None)

    def pinned(self, version: int) -> int:
        waiting = sum(len(group.waiting) for group in self._groups if forbids(group.ticket, version))
        return waiting + sum(forbids(row.group.ticket, version) for row in self._rows)

    def check(self, directory: Path) -> None:
        """Nothing to do: the model is in this process, and `load` checks all tensors before it changes any."""

    def load(self, version: int, directory: Path) -> dict[str, float]:
        return self._switch(version, lambda: self._policy.load(directory))

    def take(self, version: int, tensors: dict[str, torch.Tensor]) -> dict[str, float]:
        """Like `load`, with tensors in memory instead of files."""
        return self._switch(version, lambda: self._policy.take(tensors, f"version {version} as it was received"))

    @torch.inference_mode()
    def _switch(self, version: int, bring: Callable[[], None]) -> dict[str, float]:
        check_unpinned(self, version)
        begin = time.perf_counter()
        bring()
        loaded = time.perf_counter()
        self._version = version
        for group in self._groups:
            group.prefill = None
        self._recompute(version)
        return {"pause": time.perf_counter() - begin, "load": loaded - begin}

    @torch.inference_mode()
    def score(self, sequences: Sequence[tuple[Ids, Ids]]) -> list[NDArray[np.float32]]:
        check_scorable(
            sequences,
            loaded=self._version,
            positions=self._policy.positions,
            vocabulary=self._policy.vocabulary,
            whose="the model",
        )
        return self._policy.score(sequences)

    def submit(self, ticket: Ticket, prompt: Prompt) -> None:
        tokens = admitted(
            ticket,
            prompt,
            loaded=self._version,
            new=self._limit,
            positions=self._policy.positions,
            vocabulary=self._policy.vocabulary,
            whose="the model",
        )
        if ticket.missing:
            self._groups.append(_Group(ticket, tokens, deque(ticket.missing)))

    @torch.inference_mode()
    def cancel(self, group_ids: Collection[str]) -> int:
        before = self.in_flight
        self._groups = deque(group for group in self._groups if group.ticket.group_id not in group_ids)
        self._ended = [ended for ended in self._ended if ended[0].group.ticket.group_id not in group_ids]
        gone = [slot for slot, row in enumerate(self._rows) if row.group.ticket.group_id in group_ids]
        if gone:
            self._compact(gone)
        return before - self.in_flight

    @torch.inference_mode()
    def poll(self, seconds: float) -> list[Completion]:
        until = time.monotonic() + seconds
        while self._rows or self._groups:
            free = self._max_batch - len(self._rows)
            if self._groups and (free >= self._admit or not self._rows):
                self._start(free)
            if self._rows:
                self._step()
            if time.monotonic() >= until:
                break
        return self._completions()

    def close(self) -> None:
        self._rows, self._groups, self._ended = [], deque(), []
        self._slots = self._policy.slots(self._max_batch)

    # ------------------------------------------------------------------ passes

    def _copy_prompts(self, rows: list[_Row], first: int) -> torch.Tensor:
        """Copy prompt keys and values into slots `first` …, in the rows' order; returns next-token logits (k, V)."""
        logits, start = [], 0
        places = [cast(tuple[Prefill, int], row.group.prefill) for row in rows]
        while start < len(rows):  # neighbouring rows mostly come from one prefill pass
            prefill, end = places[start][0], start
            while end < len(rows) and places[end][0] is prefill:
                end += 1
            source = self._policy.tensor([slot for _, slot in places[start:end]])
            width = max(len(row.group.prompt) for row in rows[start:end])
            self._slots.copy_from(prefill.slots, source, first + start, width)
            logits.append(prefill.logits[source])
            start = end
        for row in rows:
            if not row.group.waiting:  # all copies are made: free the original
                row.group.prefill = None
        return torch.cat(logits)

    def _prefill(self, groups: list[_Group]) -> None:
        for group, place in zip(groups, self._policy.prefill([group.prompt for group in groups]), strict=True):
            group.prefill = place

    def _start(self, free: int) -> None:
        """Start up to `free` waiting completions: prefill new prompts, fill slots, draw each first token."""
        rows: list[_Row] = []
        fresh: list[_Group] = []
        assert self._version is not None
        for group in self._groups:
            if len(rows) == free:
                break
            if group.prefill is None:
                fresh.append(group)
            for idx in list(group.waiting)[: free - len(rows)]:
                rows.append(_Row(group, idx, [(self._version, 0)]))
        self._prefill(fresh)
        for row in rows:
            row.group.waiting.popleft()
        while self._groups and not self._groups[0].waiting:
            self._groups.popleft()
        rows.sort(key=lambda row: id(cast(tuple[Prefill, int], row.group.prefill)[0]))
        first, last = len(self._rows), len(self._rows) + len(rows)
        logits = self._copy_prompts(rows, first)
        noise = [uniforms(row.group.ticket.seed, row.idx, self._limit) for row in rows]
        self._uniforms[first:last] = self._policy.tensor(np.stack(noise))
        self._position[first:last] = self._policy.tensor(np.array([len(row.group.prompt) - 1 for row in rows]))
        self._made[first:last] = 0
        self._rows += rows
        self._width = max(self._width, *(len(row.group.prompt) for row in rows))
        self._draw(logits, first, last)

    def _step(self) -> None:
        """Sample one more token for every row."""
        count = len(self._rows)
        self._width += 1
        logits = self._policy.forward(self._slots, self._last[:count].unsqueeze(1), self._position[:count], self._width)
        self._draw(logits[:, -1], 0, count)

    def _draw(self, logits: torch.Tensor, first: int, last: int) -> None:
        """Sample rows first … last−1 from `logits`, store tokens and log-probs, and remove the rows that end."""
        rows, made = self._index[first:last], self._made[first:last]
        tokens, logprobs = draw(logits, self._uniforms[rows, made])
        self._tokens[rows, made] = tokens
        self._logprobs[rows, made] = logprobs
        self._last[first:last] = tokens
        self._position[first:last] += 1
        made += 1
        self._sampled += last - first
        done = (self._ends[tokens] | (made == self._limit)).nonzero().squeeze(1)
        if done.numel():
            self._finish([first + slot for slot in done.tolist()])

    # ------------------------------------------------------------------ rows

    def _finish(self, slots: list[int]) -> None:
        at = self._policy.tensor(np.array(slots))
        made, tokens = self._made[at].tolist(), self._tokens[at].tolist()
        logprobs = self._logprobs[at].cpu().numpy()
        for slot, length, ids, scores in zip(slots, made, tokens, logprobs, strict=True):
            self._ended.append((self._rows[slot], ids[:length], scores[:length]))
        self._compact(slots)

    def _compact(self, gone: list[int]) -> None:
        """Free the slots `gone`; the last rows move into the holes."""
        count = len(self._rows) - len(gone)
        leaving = set(gone)
        holes = [slot for slot in gone if slot < count]
        movers = [slot for slot in range(count, len(self._rows)) if slot not in leaving]
        if movers:
            source, target = self._policy.tensor(np.array(movers)), self._policy.tensor(np.array(holes))
            self._slots.move(source, target, self._width)
            for tensor in (self._tokens, self._logprobs, self._uniforms, self._last, self._position, self._made):
                tensor[target] = tensor[source]
            for mover, hole in zip(movers, holes, strict=True):
                self._rows[hole] = self._rows[mover]
        del self._rows[count:]
        self._width = int(self._position[:count].max()) if count else 0

    def _recompute(self, version: int) -> None:
        """Recompute the keys and values of all rows with the weights just loaded; later tokens belong to `version`."""
        if not self._rows:
            return
        count = len(self._rows)
        groups = list({id(row.group): row.group for row in self._rows}.values())
        self._prefill(groups)
        self._copy_prompts(self._rows, 0)
        # On top of the prompts: the answers so far without their last token, which the next step feeds.
        query = int(self._made[:count].max()) - 1
        together = max(1, self._policy.pass_tokens // query) if query else count
        for first in range(0, count if query else 0, together):
            at = slice(first, min(first + together, count))
            start = self._position[at] - self._made[at] + 1
            self._policy.forward(self._slots, self._tokens[at, :query], start, int(start.max()) + query, first=first)
        for row, made in zip(self._rows, self._made[:count].tolist(), strict=True):
            if row.starts[-1][1] == made:
                row.starts.pop()
            row.starts.append((version, made))

    def _completions(self) -> list[Completion]:
        ended, self._ended = self._ended, []
        if not ended:
            return []
        texts = self._decode([ids for _, ids, _ in ended])
        return [self._completion(*one, text) for one, text in zip(ended, texts, strict=True)]

    def _completion(self, row: _Row, ids: list[int], scores: np.ndarray[Any, Any], text: str) -> Completion:
        ends = [start for _, start in row.starts[1:]] + [len(ids)]
        return completion(
            row.group.ticket,
            row.idx,
            ids,
            scores,
            [(version, start, end) for (version, start), end in zip(row.starts, ends, strict=True)],
            stopped=ids[-1] in self._end_ids,
            text=text,
            actor=self._name,
        )
