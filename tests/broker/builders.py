"""Wire messages, and a client of every role, for tests that play services by hand."""

from __future__ import annotations

import numpy as np

from broker.queue.actor_client import ActorClient
from broker.queue.admin_client import AdminClient
from broker.queue.heartbeat import Heartbeat
from broker.queue.learner_client import LearnerClient
from broker.queue.state import Epoch, RunSpec, VersionName, Work
from broker.queue.verifier_client import VerifierClient
from broker.queue.wire import Completion, Outcome, Prompt, Ticket, Verdict, float32, int32
from broker.settings import BrokerSettings, RunSettings


class EveryRole(ActorClient, VerifierClient, LearnerClient, AdminClient):
    """The clients of all roles on one connection."""


def v(number: int, epoch: int = 1) -> VersionName:
    """The name of a version."""
    return VersionName(number, epoch)


def connect(url: str, name: str = "test", **settings: float) -> EveryRole:
    return EveryRole.connect(BrokerSettings(**{"connect_seconds": 5, **settings}), RunSettings(name=name), url=url)


def spec(**change: object) -> RunSpec:
    base: dict[str, object] = {
        "fingerprint": "f" * 64, "seed": 7, "steps": 5, "group_size": 2, "groups_per_step": 2, "publish_every": 1,
        "max_staleness": 1, "max_queued_bytes": 1 << 20, "max_new_tokens": 8, "train_prompts": 5, "eval_prompts": 3,
        "eos_token_ids": (1,), "weights": "/nowhere",
    }  # fmt: skip
    return RunSpec.model_validate(base | change)


def prompts(count: int, verifier: str = "arithmetic") -> list[Prompt]:
    return [
        Prompt(index=i, text=f"prompt {i}", tokens=int32([i]), verifier=verifier, record={"i": i}) for i in range(count)
    ]


def open_run(broker: EveryRole, **change: object) -> RunSpec:
    """A run that is opened by a learner which has ended since."""
    run = spec(**change)
    broker.open_run(begin(broker, "opener"), run, prompts(run.train_prompts), prompts(run.eval_prompts))
    broker.heartbeat(Heartbeat(id="opener", role="learner", phase="stopped"))
    return run


def begin(broker: EveryRole, learner: str = "learner") -> Epoch:
    """Take the run from whichever learner has it, which ends first."""
    holder = broker._state("learner")
    if holder is not None:
        broker.heartbeat(Heartbeat(id=holder.decode(), role="learner", phase="stopped"))
    return broker.begin(learner)


def complete(ticket: Ticket, idx: int, version: int | None = None, tokens: int = 3) -> Completion:
    version = ticket.version if version is None else version
    return Completion(
        group_id=ticket.group_id,
        lane=ticket.lane,
        prompt=ticket.prompt,
        idx=idx,
        n=ticket.n,
        tokens=int32(np.arange(tokens)),
        logprobs=float32(-np.ones(tokens)),
        spans=((version, 0, tokens),),
        finish="stop",
        text=f"answer {idx}",
        actor="a",
    )


def offer_all(broker: EveryRole, actor: str, tickets: list[Ticket], version: int | None = None) -> None:
    broker.offer(actor, [complete(ticket, idx, version) for ticket in tickets for idx in ticket.missing])


def verdict(outcome: Outcome = "pass") -> Verdict:
    return Verdict(outcome=outcome, reason="right", seconds=0.001, verifier="arithmetic/1")


def judge_all(broker: EveryRole, consumer: str = "v", outcome: Outcome = "pass", count: int = 1000) -> list[Work]:
    works = broker.receive("arithmetic", consumer, count, 0.01)
    broker.judge("arithmetic", consumer, [(work, verdict(outcome)) for work in works])
    return works
