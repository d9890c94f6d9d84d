"""The records that the broker answers with, without methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from broker.queue.wire import Completion, Prompt, Ticket, Verdict


class RunSpec(BaseModel):
    """What all services of a run must agree on; written once by the learner that opens it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    """Hash of everything that must not change within a run: base model, prompts, seed, sampling."""
    seed: int
    steps: int
    group_size: int
    groups_per_step: int
    publish_every: int
    max_staleness: int
    forced_staleness: int = 0
    """Studies only: how many versions behind the newest train groups are sampled."""
    max_queued_bytes: int
    max_new_tokens: int
    train_prompts: int
    eval_prompts: int
    eos_token_ids: tuple[int, ...]
    weights: str
    """Directory of the published versions, as the learner sees it."""


@dataclass(frozen=True)
class TicketBatch:
    """Answer to `Broker.take`."""

    version: int
    """Newest published version."""
    tickets: list[Ticket]
    waiting_on: str
    """Why there is not more: empty while room was filled."""


@dataclass(frozen=True)
class Work:
    """One completion to be judged; `entry` is its place in the queue."""

    entry: str
    completion: Completion
    prompt: Prompt
    attempt: int
    """1 for the first try."""


@dataclass(frozen=True)
class Member:
    """A judged completion; `base` is log π_b per token, float32 (T,), once it has been scored."""

    completion: Completion
    verdict: Verdict
    base: np.ndarray[Any, np.dtype[np.float32]] | None


@dataclass(frozen=True)
class Group:
    """A finished group: the judged completions of one ticket."""

    group_id: str
    prompt: int
    n: int
    version: int
    """Newest published version at issue."""
    oldest: int
    """Oldest version that sampled any of its tokens."""
    closed_short: int
    """Completions missing because they were dead-lettered."""
    ready_at: float
    """Unix seconds of its last verdict; 0 in the eval lane."""
    members: list[Member]


@dataclass(frozen=True)
class Epoch:
    """A learner's hold on the run; `number` fences every earlier learner."""

    number: int
    committed_step: int
    version: int
    returned_groups: int
    opened: bool
    """Whether version 0 has been published."""


@dataclass(frozen=True)
class CommitReply:
    groups: int
    duplicates: int
    """Groups that had been committed before: 0 unless something is badly wrong."""


@dataclass(frozen=True)
class DeadLetter:
    entry: str
    group_id: str
    idx: str
    verifier: str
    reason: str
    verdict: Verdict | None
    payload_bytes: int


class _Report(BaseModel):
    """Numbers read from a script's JSON; cjson writes an empty list as {}."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Depths(_Report):
    """What waits where."""

    version: int
    published_step: int
    committed_step: int
    issued: int
    absorbed: int
    finished: bool
    opened: bool
    queued_bytes: Annotated[int, Field(description="payload bytes in Redis")]
    dead_letters: int
    reissued: int
    retried: int
    dropped: int
    stale: int
    repeated_offers: int
    repeated_verdicts: int
    completions_train: int
    completions_eval: int
    passed: int
    failed: int
    tickets: int
    """Groups being sampled."""
    returned: int
    """Groups waiting to be sampled again."""
    eval_waiting: int
    open: int
    """Train groups issued and not yet leased."""
    ready: int
    leased: int
    """Groups leased to the learner and not yet committed."""
    verify: dict[str, int]
    """Completions waiting or being judged, per verifier."""
    staleness_in_flight: list[int]
    """Version now − version at issue, per train group being sampled."""
    staleness_in_queue: list[int]
    """Version now − oldest version, per ready group."""

    @field_validator("staleness_in_flight", "staleness_in_queue", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return [] if value == {} else value

    @field_validator("verify", mode="before")
    @classmethod
    def _map(cls, value: Any) -> Any:
        return {} if value == [] else value


class Audit(_Report):
    """Every issued group and every completion accounted for; `lost` and `duplicates` are 0 in a sound run."""

    issued: int
    committed: int
    dropped: int
    open: int
    """Train groups on their way: issued, neither committed nor dropped."""
    ready: int
    leased: int
    tickets: int
    lost_groups: int
    lost_completions: int
    duplicates: int
    completions: int
    eval_completions: int
    trained_completions: int
    dead_letters: int
    retried: int
    reissued: int
    stale: int
    repeated_offers: int
    repeated_verdicts: int
    bytes: int

    @property
    def lost(self) -> int:
        return self.lost_groups + self.lost_completions
