"""Records of the run's state that the clients return."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from broker.queue.wire import SCHEMA, Completion, Prompt, Ticket, Verdict


class RunSpec(BaseModel):
    """What all services of a run must agree on; written once by the learner that opens it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    """Hash of everything that must not change within a run: base model, prompts, seed, sampling, unsafe settings."""
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
    settings: dict[str, Any] = {}
    """Settings of the training by their dotted names, which a resumed run is compared with."""
    unsafe: tuple[str, ...] = ()
    """Settings with which actors may sample something other than the policy, `<key>=<JSON>` each, sorted."""

    @property
    def groups_per_version(self) -> int:
        """Groups that one published version absorbs."""
        return self.groups_per_step * self.publish_every

    def to_json(self) -> str:
        """The specification with the schema number, as Redis holds it."""
        return json.dumps({"schema": SCHEMA, **self.model_dump(mode="json")})


@dataclass(frozen=True)
class TicketBatch:
    """Tickets granted to an actor."""

    version: int
    """The version to sample train groups with (`ActorClient.sampling_version`)."""
    tickets: list[Ticket]
    waiting_on: str
    """What keeps the batch short; empty when the room was filled. One of the fixed reasons in take.lua."""


@dataclass(frozen=True)
class Work:
    """One completion to be judged."""

    entry: str
    """Id of its entry in the verify queue."""
    completion: Completion
    prompt: Prompt
    attempt: int
    """1 for the first try. Earlier tries ended with an error, or with no verdict at all."""
    alone: bool = False
    """Whether an earlier consumer may have been ended by it: it must be judged with nothing else in the process."""


@dataclass(frozen=True)
class Member:
    """A judged completion."""

    completion: Completion
    verdict: Verdict
    base: np.ndarray[Any, np.dtype[np.float32]] | None
    """log π_b per token, float32, shape (T,); None until it has been scored."""


@dataclass(frozen=True)
class Group:
    """A finished group: the judged completions of one ticket."""

    group_id: str
    prompt: int
    n: int
    version: int
    """The version to sample train groups with at issue; of an evaluation, the version that it is pinned to."""
    oldest: int
    """Oldest version that sampled any of its tokens."""
    closed_short: int
    """Completions missing because they were dead-lettered."""
    ready_at: float
    """Unix seconds of its last verdict; 0 in the eval lane."""
    members: list[Member]


class VersionName(NamedTuple):
    """Number and epoch of a version. The number alone names weights once the broker has named its epoch (`Published`);
    until then another learner may be writing other weights under the same number."""

    number: int
    epoch: int
    """The learner's epoch in which it was written."""

    def __str__(self) -> str:
        """Name of its directory."""
        return f"v{self.number:08d}-e{self.epoch:04d}"


@dataclass(frozen=True)
class Published:
    """A version that the version pointer has named: the one set of weights that its number means."""

    name: VersionName
    step: int
    """Optimiser steps that it contains; never decreases from one version to the next."""
    identity: str
    """`Manifest.identity` of its files."""


@dataclass(frozen=True)
class Epoch:
    """A learner's hold on the run, and where the run stands."""

    number: int
    """Fencing token: the scripts refuse every learner with a smaller one."""
    committed_step: int
    checkpoint: str
    """Name of the checkpoint of that step; empty at step 0."""
    version: int
    """Newest published version; 0 also before the first."""
    used_version: int
    """Highest version number ever given: published, or sent to actors. -1 before the first."""
    published_step: int
    """Optimiser steps that the published version contains."""
    leased_groups: int
    """Groups leased for steps after the committed one: the same steps get the same groups again."""
    opened: bool
    """Whether the published version may be sampled from; False before version 0, and after a rollback until the
    weights that the run went back to are published."""


@dataclass(frozen=True)
class CommitReply:
    """Counts of what a commit settled."""

    groups: int
    duplicates: int
    """Groups that had been committed before: 0 unless the state in Redis is damaged."""


@dataclass(frozen=True)
class RollbackReply:
    """Counts of what a rollback took back."""

    untrained: int
    """Groups of committed steps."""
    discarded: int
    """Groups that were issued and not committed."""


@dataclass(frozen=True)
class DeadLetter:
    """A completion that no verifier could judge; group id and index are what its queue entry said."""

    entry: str
    """Id of its entry in the stream of dead letters."""
    group_id: str
    idx: str
    verifier: str
    reason: str
    verdict: Verdict | None
    """The last one; None when the completion could not be read, or its last consumer gave none."""
    history: tuple[str, ...]
    """One line for each attempt: the consumer, and its reason code or that it gave no verdict."""
    payload_bytes: int


class _Report(BaseModel):
    """Numbers read from a script's JSON; cjson writes an empty list as {}."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TicketLease(_Report):
    """A ticket that an actor holds, or that waits to be issued again."""

    holder: str
    """Id of the actor; empty while nobody holds it."""
    count: int = 1
    """Tickets of the same holder, this one included."""
    group_id: str
    lane: str
    attempt: int
    """How often it has been issued."""
    n: int
    offered: int
    """Completions of its n that have arrived."""
    seconds: float
    """Time since it was issued last."""


class VerifyQueue(_Report):
    """A queue of completions for one verifier."""

    name: str
    waiting: int
    """Completions waiting or being judged."""
    holders: dict[str, int]
    """Completions that each verifying service has received and not answered."""
    oldest_seconds: float
    """How long the oldest has been in the queue; 0 when it is empty."""
    oldest: str
    """Group id of the oldest; empty when the queue is."""
    holder: str
    """The verifying service that has the oldest; empty when none has."""

    @field_validator("holders", mode="before")
    @classmethod
    def _map(cls, value: Any) -> Any:
        return {} if value == [] else value


class Depths(_Report):
    """Counts of what waits where, and who holds it. Seconds are by the clock of Redis."""

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
    leases: list[TicketLease]
    """The oldest ticket of each actor that holds any."""
    most_issued: list[TicketLease]
    """The ticket not yet finished that was issued most often, if there is one."""
    queues: list[VerifyQueue]
    learner: str
    """Id of the learner that holds the run, alive or not; empty before the first."""
    ticket_seconds: float
    """Moving average of the time from a ticket's issue to its last completion; 0 before the first."""
    offered_seconds: float
    """Time since the last completion arrived; -1 before the first."""
    judged_seconds: float
    """Time since the last verdict arrived; -1 before the first."""
    oldest_open: str
    """Id of the oldest group not yet leased, by which admission counts staleness; empty when none is open."""
    oldest_absorbed: int
    """Groups that had been absorbed when it was issued; all that are absorbed when none is open."""

    @field_validator("staleness_in_flight", "staleness_in_queue", "leases", "most_issued", "queues", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return [] if value == {} else value

    @field_validator("verify", mode="before")
    @classmethod
    def _map(cls, value: Any) -> Any:
        return {} if value == [] else value


class Audit(_Report):
    """Account of every issued group and every completion; `lost` and `duplicates` are 0 in a sound run."""

    issued: int
    committed: int
    dropped: int
    open: int
    """Train groups issued, and neither committed nor dropped."""
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
    again: int
    """Groups that a rollback took back, which are sampled anew before any other; not counted as issued."""
    settled: int
    """Groups that commits have settled, counted as they were; `committed` counts their marks."""
    rolled_back: int
    """Groups whose training a rollback took back."""
    epoch: int
    committed_step: int
    checkpoint: str
    """Name of the checkpoint of that step; empty at step 0."""
    version: int
    published_step: int
    opened: bool
    finished: bool

    @property
    def lost(self) -> int:
        """Groups and completions that the state does not account for."""
        return self.lost_groups + self.lost_completions
