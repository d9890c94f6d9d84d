"""Canaries: sequences that learner and actors both score under each version, to verify that they hold the same weights.

The learner puts a canary into Redis before it moves the version pointer. Each actor scores it right after loading the
version and reports its log-probs; the learner compares them (`learner.weights.canary`). A canary is a few KB. It is
not kept with the weights, so it is available however the weights arrive, and no loader meets a file that is not
weights. Canaries and reports are deleted with their versions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from broker.queue.connection import RunConnection
from broker.queue.state import Epoch
from broker.queue.wire import Message, WireError, pack, unpack

SEQUENCES = 6
PROMPT_TOKENS = 192
ANSWER_TOKENS = 64
"""Limits of one canary: at most 1,536 tokens, little beside a training step."""
MAX_BYTES = 1 << 16

Precision = Literal["float32", "bfloat16", "float16"]
Parts = Annotated[tuple[bytes, ...], Field(min_length=1, max_length=SEQUENCES)]


class Canary(Message):
    """Sequences with the learner's log-probs of them under exactly the weights of `version`."""

    version: Annotated[int, Field(ge=0)]
    precision: Precision
    """In which the learner computed them."""
    prompts: Parts
    """Token ids of each sequence's prompt, int32 little-endian."""
    answers: Parts
    """Token ids of each sequence's answer, int32 little-endian."""
    logprobs: Parts
    """log π in nats of each answer token, float32 little-endian."""

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
        """(prompt ids, answer ids) of each sequence."""
        return [
            (np.frombuffer(prompt, "<i4"), np.frombuffer(answer, "<i4"))
            for prompt, answer in zip(self.prompts, self.answers, strict=True)
        ]

    def difference(self, logprobs: Sequence[bytes]) -> tuple[float, float]:
        """Mean and largest |Δ log π| per token against `logprobs`, in nats; inf when their lengths differ or one of
        them is not finite."""
        if [len(scores) for scores in logprobs] != [len(scores) for scores in self.logprobs]:
            return float("inf"), float("inf")
        return difference(self.logprobs, logprobs)


class Report(Message):
    """One actor's log-probs of a version's canary."""

    version: Annotated[int, Field(ge=0)]
    actor: Annotated[str, Field(max_length=200)]
    engine: Annotated[str, Field(max_length=32)]
    precision: Precision
    """In which the engine computes."""
    logprobs: Parts
    """As in Canary."""


def difference(ours: Sequence[bytes], theirs: Sequence[bytes]) -> tuple[float, float]:
    """Mean and largest |ours − theirs| over all float32 numbers; inf when one is not finite."""
    with np.errstate(invalid="ignore"):
        gap = np.abs(np.frombuffer(b"".join(ours), "<f4") - np.frombuffer(b"".join(theirs), "<f4"))
    if not np.isfinite(gap).all():
        return float("inf"), float("inf")
    return float(gap.mean(dtype=np.float64)), float(gap.max())


class Canaries:
    """The run's canaries and reports in Redis; every method is safe to repeat."""

    def __init__(self, broker: RunConnection) -> None:
        self._broker = broker

    def put(self, epoch: Epoch, canary: Canary, kept: Collection[int]) -> None:
        """Store `canary`, before its version is published, and delete canaries and reports of versions not in `kept`.

        Raises Fenced."""
        message = pack(canary)
        self._broker.script("canary", epoch=epoch.number, version=canary.version, message=message, kept=kept)

    def get(self, version: int) -> Canary | None:
        """The canary of `version`; None while there is none. Raises WireError."""
        (body,) = self._broker.fields("canaries", [str(version)])
        return None if body is None else unpack(Canary, body, max_bytes=MAX_BYTES)

    def report(self, report: Report) -> None:
        """Store an actor's report on a version, in place of an earlier one of the same actor on the same version."""
        self._broker.script("canary_report", version=report.version, actor=report.actor, message=pack(report))

    def reports(self) -> list[Report]:
        """The reports on all versions that are kept."""
        found = []
        for body in self._broker.script("canary_reports"):
            try:
                found.append(unpack(Report, body, max_bytes=MAX_BYTES))
            except WireError:  # an actor of another release: its report cannot be compared
                continue
        return found
