"""Canaries: sequences of each version that learner and actors both score, to see that they hold the same weights.

The learner puts one in the broker before it moves the version pointer; each actor scores it right after loading the
version and reports its log-probs. A few KB each: they go through the broker, not with the weights, so that they are
there whatever way the weights take, and no loader ever meets a file that is not weights. Canaries and reports of
versions that are deleted go with them. Judging is the learner's (`learner.weights.canary`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from broker.queue.client import Broker
from broker.queue.state import Epoch
from broker.queue.wire import Message, WireError, pack, unpack

SEQUENCES = 6
PROMPT_TOKENS = 192
ANSWER_TOKENS = 64
"""Bounds of one canary: 1,536 tokens at most, a fraction of a training step and of a moment's sampling."""
MAX_BYTES = 1 << 16

Precision = Literal["float32", "bfloat16", "float16"]
Parts = Annotated[tuple[bytes, ...], Field(min_length=1, max_length=SEQUENCES)]


class Canary(Message):
    """`prompts` and `answers`: token ids, int32 little-endian, of each sequence; `logprobs`: the learner's own log π of
    each answer token under exactly the weights of `version`, float32 little-endian."""

    version: Annotated[int, Field(ge=0)]
    precision: Precision
    """What the learner computes in."""
    prompts: Parts
    answers: Parts
    logprobs: Parts

    @model_validator(mode="after")
    def _consistent(self) -> Canary:
        if not len(self.prompts) == len(self.answers) == len(self.logprobs):
            raise ValueError(f"{len(self.prompts)} prompts, {len(self.answers)} answers, {len(self.logprobs)} scores")
        for prompt, answer, scores in zip(self.prompts, self.answers, self.logprobs, strict=True):
            if not prompt or not answer or len(prompt) % 4 or len(answer) % 4 or len(scores) != len(answer):
                raise ValueError(f"{len(prompt)} prompt, {len(answer)} answer and {len(scores)} score bytes")
        return self

    @property
    def sequences(self) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """(prompt ids, answer ids) of each."""
        return [
            (np.frombuffer(prompt, "<i4"), np.frombuffer(answer, "<i4"))
            for prompt, answer in zip(self.prompts, self.answers, strict=True)
        ]

    def difference(self, logprobs: Sequence[bytes]) -> tuple[float, float]:
        """Mean and largest |Δ log π| per token against these log-probs, in nats; inf where they are no such numbers."""
        if [len(scores) for scores in logprobs] != [len(scores) for scores in self.logprobs]:
            return float("inf"), float("inf")
        return difference(self.logprobs, logprobs)


class Report(Message):
    """What one actor's engine makes of a version's canary."""

    version: Annotated[int, Field(ge=0)]
    actor: Annotated[str, Field(max_length=200)]
    engine: Annotated[str, Field(max_length=32)]
    precision: Precision
    """What the engine computes in."""
    logprobs: Parts


def difference(ours: Sequence[bytes], theirs: Sequence[bytes]) -> tuple[float, float]:
    """Mean and largest |ours − theirs| over all float32 numbers; inf when one is not finite."""
    with np.errstate(invalid="ignore"):
        gap = np.abs(np.frombuffer(b"".join(ours), "<f4") - np.frombuffer(b"".join(theirs), "<f4"))
    if not np.isfinite(gap).all():
        return float("inf"), float("inf")
    return float(gap.mean(dtype=np.float64)), float(gap.max())


class Canaries:
    """The run's canaries in the broker; every call is safe to repeat."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def put(self, epoch: Epoch, canary: Canary, kept: Collection[int]) -> None:
        """Before its version is published. Canaries and reports of versions not in `kept` are deleted.

        Raises Fenced."""
        versions: list[Any] = [str(version) for version in kept]
        self._broker.script("canary", epoch.number, canary.version, pack(canary), *versions)

    def get(self, version: int) -> Canary | None:
        """The canary of `version`, None before it is there and after it is gone. Raises WireError."""
        (body,) = self._broker.fields("canaries", [str(version)])
        return None if body is None else unpack(Canary, body, max_bytes=MAX_BYTES)

    def report(self, report: Report) -> None:
        """An actor's word on a version; a later one of the same actor on the same version takes its place."""
        self._broker.script("canary_report", report.version, report.actor, pack(report))

    def reports(self) -> list[Report]:
        """What actors have said about the versions that are kept."""
        found = []
        for body in self._broker.script("canary_reports"):
            try:
                found.append(unpack(Report, body, max_bytes=MAX_BYTES))
            except WireError:  # an actor of another release: what it says cannot be judged
                continue
        return found
