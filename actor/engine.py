"""The engine protocol, which turns tickets into completions, with the errors and the checks that all engines share.

Every engine keeps these invariants:

- A completion is returned by `poll` as soon as it ends; it never waits for the rest of its group.
- Its version spans say which weights sampled which token, and its log-probs are those that the sampler used.
- Every token of an eval ticket is sampled with exactly `ticket.version`, of a train ticket with that or a newer one.
- After `load` returns, no token is sampled with the previous weights or attends to keys and values computed with them,
  unless the engine's approximate mode is on; the log-probs are those actually sampled from in either case.
- Running completions continue across a `load`: nothing is lost, restarted or sampled twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from broker.errors import EX_DATA, EX_USAGE, SieveError
from broker.queue.wire import Completion, Prompt, Ticket, float32, int32

Ids = NDArray[np.int32]
"""Token ids, (T,) int32."""


class EngineError(SieveError):
    """The engine cannot do what was asked; the message names the value, the limit and the remedy."""


class EngineMissing(EngineError):
    """The chosen engine's package is not installed."""

    exit_code = EX_USAGE


class ArgumentRefused(EngineError):
    """An engine argument in the configuration does not exist, or may not be set by the user."""

    exit_code = EX_USAGE


class ModelUnusable(EngineError):
    """The model at model.path cannot be opened or served by this engine."""

    exit_code = EX_DATA


class PromptTooLong(EngineError):
    """Prompt and answer together exceed the model's positions."""

    exit_code = EX_DATA


class TokenUnknown(EngineError):
    """A prompt, or a sequence to be scored, has a token id that the model does not have."""

    exit_code = EX_DATA


class WeightsUnusable(EngineError):
    """A version's files do not fit the model, or give log-probs that are not finite; it is not sampled from."""

    exit_code = EX_DATA


class NoAnswer(EngineError):
    """The process that computes does not answer now; a later call may succeed."""


class WrongVersion(EngineError):
    """The loaded weights may not sample a ticket, or running completions forbid loading other weights."""


class Engine(Protocol):
    """An engine; a process has one, and calls it from one thread (`check` from another)."""

    @property
    def version(self) -> int | None:
        """The version that samples the next token; None while no weights are loaded."""

    @property
    def in_flight(self) -> int:
        """Completions submitted and not yet returned by `poll`."""

    @property
    def running(self) -> int:
        """Completions that are decoded concurrently at this moment, ≤ the engine's batch limit."""

    @property
    def tokens(self) -> int:
        """Tokens sampled since the start, including those of cancelled completions."""

    def check(self, directory: Path) -> None:
        """Check that the files in `directory`, whose checksums were verified, can be loaded.

        Called from one other thread, while sampling goes on. Raises WeightsUnusable naming the tensor."""

    def load(self, version: int, directory: Path) -> dict[str, float]:
        """Load the files in `directory` and sample with them from the next token on (pause, load, stamp, resume).

        `directory` must have passed `check`. Returns seconds by part: "pause", during which nothing was sampled, and
        "load", the loading of the tensors. Raises WrongVersion if `pinned(version)` > 0, and WeightsUnusable if the
        files do not fit after all; the previous weights then stay loaded."""

    def score(self, sequences: Sequence[tuple[Ids, Ids]]) -> list[NDArray[np.float32]]:
        """log π of each token of the answers, (T,) float32 each, in the order given, under the loaded weights.

        A sequence is (prompt ids, answer ids), both non-empty and within the model's positions. The log-probs are
        computed by the sampler's kernels in its precision, beside what runs: they are what `poll` would report if it
        had sampled these tokens. Raises WrongVersion while no weights are loaded, PromptTooLong, TokenUnknown,
        NoAnswer."""

    def pinned(self, version: int) -> int:
        """Completions in flight that `version` may not sample: eval ones of another, train ones of a newer version."""

    def submit(self, ticket: Ticket, prompt: Prompt) -> None:
        """Start sampling `ticket.missing`. Raises WrongVersion, PromptTooLong or TokenUnknown before anything is
        started."""

    def cancel(self, group_ids: Collection[str]) -> int:
        """Drop the unfinished completions of these tickets; returns how many there were."""

    def poll(self, seconds: float) -> list[Completion]:
        """Sample for about `seconds` (at least one decoding step) and return the completions that ended, maybe none."""

    def oldest_version(self) -> int | None:
        """The oldest version that sampled a token of a running completion; None if nothing runs."""

    def close(self) -> None:
        """Free the engine's resources; unfinished completions are dropped."""


def forbids(ticket: Ticket, version: int) -> bool:
    """Whether `version` may not sample tokens of this ticket."""
    return ticket.version != version if ticket.lane == "eval" else ticket.version > version


def admitted(
    ticket: Ticket, prompt: Prompt, *, loaded: int | None, new: int, positions: int, vocabulary: int, whose: str
) -> list[int]:
    """The prompt's token ids, after checking that version `loaded` may sample the ticket, that the model knows them and
    that `new` more tokens fit.

    `positions`: the length of the longest sequence; `vocabulary`: the number of token ids; `whose`: the owner of the
    positions, for the message. Raises WrongVersion, PromptTooLong, TokenUnknown."""
    if loaded is None or forbids(ticket, loaded):
        raise WrongVersion(f"{ticket.lane} ticket {ticket.group_id} needs version {ticket.version}, loaded is {loaded}")
    tokens: list[int] = np.frombuffer(prompt.tokens, "<i4").tolist()
    if not 1 <= len(tokens) <= positions - new:
        raise PromptTooLong(
            f"prompt {ticket.prompt} has {len(tokens)} tokens; with sampling.max_new_tokens = {new} it must have "
            f"1 … {positions - new} ({whose} has {positions} positions)"
        )
    _check_known(f"prompt {ticket.prompt}", tokens, vocabulary)
    return tokens


def _check_known(what: str, tokens: Sequence[int], vocabulary: int) -> None:
    """Raise TokenUnknown, naming `what`, if one of `tokens` is not below `vocabulary`."""
    for at, token in enumerate(tokens):
        if not 0 <= token < vocabulary:
            raise TokenUnknown(
                f"{what} has token id {token} at position {at}, the model at model.path has ids 0 … {vocabulary - 1}; "
                f"tokenise the prompts with this model's tokenizer"
            )


def check_unpinned(engine: Engine, version: int) -> None:
    """Raise WrongVersion if running completions forbid loading `version`."""
    if pinned := engine.pinned(version):
        raise WrongVersion(f"{pinned} completions in flight may not be sampled with version {version}; poll first")


def check_scorable(
    sequences: Sequence[tuple[Ids, Ids]], *, loaded: int | None, positions: int, vocabulary: int, whose: str
) -> None:
    """Check the arguments of `Engine.score` as `admitted` checks a ticket. Raises WrongVersion, PromptTooLong,
    TokenUnknown."""
    if loaded is None:
        raise WrongVersion("no weights are loaded, so nothing can be scored; load a version first")
    for number, (prompt, answer) in enumerate(sequences):
        if not (len(prompt) and len(answer) and len(prompt) + len(answer) <= positions):
            raise PromptTooLong(
                f"sequence {number} has {len(prompt)} prompt and {len(answer)} answer tokens; each needs at least one, "
                f"both together at most {positions} ({whose} has {positions} positions)"
            )
        _check_known(f"sequence {number}", [*prompt.tolist(), *answer.tolist()], vocabulary)


def completion(
    ticket: Ticket,
    idx: int,
    tokens: Sequence[int],
    logprobs: NDArray[np.float32],
    spans: Iterable[tuple[int, int, int]],
    *,
    stopped: bool,
    text: str,
    actor: str,
) -> Completion:
    """The finished completion `idx` of a ticket.

    `logprobs`: (T,), of the tokens sampled; `spans`: (version, start, end) that partition [0, T); `stopped`: whether it
    ended with an end token. Raises WeightsUnusable if a log-prob is not finite."""
    spans = tuple(spans)
    if not np.isfinite(logprobs).all():
        raise WeightsUnusable(
            f"versions {[version for version, _, _ in spans]} gave a log-prob that is not finite for "
            f"{ticket.group_id}; use model.dtype: float32, or a lower learning rate"
        )
    return Completion(
        group_id=ticket.group_id,
        lane=ticket.lane,
        prompt=ticket.prompt,
        idx=idx,
        n=ticket.n,
        tokens=int32(tokens),
        logprobs=float32(logprobs),
        spans=spans,
        finish="stop" if stopped else "length",
        text=text,
        actor=actor,
    )


def request_seed(seed: int, idx: int) -> int:
    """The seed of one completion, 63 bits: the same on every attempt, independent of the rest of the batch."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{idx}".encode(), digest_size=8).digest(), "little") >> 1
