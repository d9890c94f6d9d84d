"""The engine protocol: what turns tickets into completions. Holds no engine; knows nothing of Redis or of the service.

Invariants every engine keeps:

- A completion leaves through `poll` as soon as it ends; it never waits for the rest of its group.
- Its version spans say which weights sampled which token, as it happened. Its log-probs are those the sampler used.
- Eval tickets are sampled with exactly `ticket.version`, train tickets with `ticket.version` or newer, for every token.
- After `load` returns, no token is sampled with (or attends to keys and values of) the weights before it, unless the
  engine states that its approximate mode is on; the log-probs are the truth either way.
- Running completions go on across a `load`: nothing is lost, restarted or sampled twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from broker.errors import EX_DATA, EX_USAGE, SieveError
from broker.queue.wire import Completion, Prompt, Ticket

Ids = NDArray[np.int32]
"""Token ids, (T,) int32."""


class EngineError(SieveError):
    """The engine cannot do what was asked; the message has the value, the limit and the remedy."""


class EngineMissing(EngineError):
    """The chosen engine's package is not installed."""

    exit_code = EX_USAGE


class ArgumentRefused(EngineError):
    """An engine argument of the configuration does not exist, or is not the user's to set."""

    exit_code = EX_USAGE


class ModelUnusable(EngineError):
    """The model at model.path cannot be opened or served by this engine."""

    exit_code = EX_DATA


class PromptTooLong(EngineError):
    """Prompt and answer do not fit the model's positions."""

    exit_code = EX_DATA


class WeightsUnusable(EngineError):
    """A version's files do not fit the model, or give log-probs that are not finite: never sampled from."""

    exit_code = EX_DATA


class NoAnswer(EngineError):
    """What computes does not answer now and may later: ask again."""


class WrongVersion(EngineError):
    """A ticket may not be sampled with the loaded weights, or running completions forbid loading others."""


class Engine(Protocol):
    """One engine per process, driven from one thread."""

    @property
    def version(self) -> int | None:
        """The version that samples the next token; None before the first `load`."""

    @property
    def in_flight(self) -> int:
        """Completions submitted and not yet returned by `poll`."""

    @property
    def running(self) -> int:
        """Completions being decoded side by side at this moment, ≤ the engine's batch limit."""

    @property
    def tokens(self) -> int:
        """Tokens sampled since the start, those of cancelled completions included."""

    def check(self, directory: Path) -> None:
        """Whether the files in `directory`, which were verified, can be loaded; from one other thread, while sampling
        goes on. Raises WeightsUnusable naming the tensor."""

    def load(self, version: int, directory: Path) -> dict[str, float]:
        """Sample with the files in `directory` from the next token on (pause, load, stamp, resume).

        Returns seconds by part: "pause", all the time sampling stood still, and "load", bringing the tensors in.
        Only directories that passed `check` are given here. Raises WrongVersion if `pinned(version)` > 0 and
        WeightsUnusable if the files do not fit after all; the weights before stay loaded then."""

    def score(self, sequences: Sequence[tuple[Ids, Ids]]) -> list[NDArray[np.float32]]:
        """log π of each token of the answers (T,) float32, in the order given, under the loaded weights.

        A sequence is (prompt ids, answer ids), both non-empty and within the model's positions. Computed by the
        sampler's own kernels in its own precision, without disturbing what runs: what `poll` would have reported had
        it drawn these tokens. Raises WrongVersion before the first `load`, PromptTooLong, NoAnswer."""

    def pinned(self, version: int) -> int:
        """Completions in flight that may not see `version`: eval ones of another version, train ones issued later."""

    def submit(self, ticket: Ticket, prompt: Prompt) -> None:
        """Start sampling `ticket.missing`. Raises WrongVersion or PromptTooLong, having started nothing."""

    def cancel(self, group_ids: Collection[str]) -> int:
        """Forget these tickets' unfinished completions (nobody waits for them any more); returns how many."""

    def poll(self, seconds: float) -> list[Completion]:
        """Go on for about `seconds` (at least one decoding step) and return what ended, possibly nothing."""

    def oldest_version(self) -> int | None:
        """The oldest version any running completion has a token from; None if nothing runs."""

    def close(self) -> None:
        """Free what the engine holds; unfinished completions are forgotten."""


def forbids(ticket: Ticket, version: int) -> bool:
    """Whether a token of this ticket may not come from `version`."""
    return ticket.version != version if ticket.lane == "eval" else ticket.version > version


def admitted(ticket: Ticket, prompt: Prompt, *, loaded: int | None, new: int, positions: int, whose: str) -> list[int]:
    """The prompt's token ids, once it is sure that `loaded` may sample the ticket and that `new` tokens more fit.

    `positions`: the longest sequence; `whose`: what has them, for a person. Raises WrongVersion, PromptTooLong."""
    if loaded is None or forbids(ticket, loaded):
        raise WrongVersion(f"{ticket.lane} ticket {ticket.group_id} needs version {ticket.version}, loaded is {loaded}")
    tokens: list[int] = np.frombuffer(prompt.tokens, "<i4").tolist()
    if not 1 <= len(tokens) <= positions - new:
        raise PromptTooLong(
            f"prompt {ticket.prompt} has {len(tokens)} tokens; with sampling.max_new_tokens = {new} it must have "
            f"1 … {positions - new} ({whose} has {positions} positions)"
        )
    return tokens


def request_seed(seed: int, idx: int) -> int:
    """A completion's own seed, 63 bits: the same on every attempt, whichever others are sampled beside it."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{idx}".encode(), digest_size=8).digest(), "little") >> 1
