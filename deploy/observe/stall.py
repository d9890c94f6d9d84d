"""What can be wrong with a run that does not move: the kinds of stalls, and one stall as people read it.

A stall is a place in the pipeline where nothing can pass, with its reason and what to do about it. Which stalls a
snapshot has is decided in diagnosis.py. Does no I/O.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

StallKind = Literal[
    "broker_password",
    "broker_permission",
    "broker_refused",
    "broker_host",
    "broker_silent",
    "broker_cut",
    "broker_not_redis",
    "broker_loading",
    "broker_read_only",
    "broker_disk",
    "broker_memory",
    "broker_unusable",
    "run_unreadable",
    "run_not_opened",
    "no_version",
    "no_learner",
    "learner_lease",
    "learner_slow",
    "no_actor",
    "actor_silent",
    "weights_missing",
    "weights_corrupt",
    "weights_unusable",
    "weights_slow",
    "no_verifier",
    "verifier_silent",
    "verifier_errors",
    "service_trouble",
    "verdict_slow",
    "ticket_slow",
    "ticket_reissued",
    "tickets_waiting",
    "queued_bytes",
    "staleness_bound",
    "all_dead_lettered",
    "all_waiting",
]
"""What is wrong, as a value of the metric label `kind`. Those of the broker are `broker_` and a BrokerCause."""
MEANING: dict[StallKind, str] = {
    "broker_password": "Redis refuses the user or the password in `broker.url`.",
    "broker_permission": "Redis forbids this user a command that is needed.",
    "broker_refused": "Nothing listens at the address: a wrong port, or Redis is not running.",
    "broker_host": "The host in `broker.url` has no address.",
    "broker_silent": "Redis, or the network, does not answer: stopped, overloaded, packets dropped.",
    "broker_cut": "Connections are made and ended: TLS on one side only, too many clients, a proxy.",
    "broker_not_redis": "Something else answers at the address.",
    "broker_loading": "Redis reads its data after a start.",
    "broker_read_only": "The address is that of a replica.",
    "broker_disk": "Redis cannot write its data to its disk and refuses writes.",
    "broker_memory": "Redis is at its memory limit and refuses writes.",
    "broker_unusable": "Anything else: no broker was started, the private one is of another host, it is too old.",
    "run_unreadable": "The run in Redis is of another schema than this release.",
    "run_not_opened": "No live learner, and none has opened the run yet.",
    "no_version": "The learner has not published anything to sample from, and has been busy for long.",
    "no_learner": "No live learner.",
    "learner_lease": "Every learner waits for the lease of one that is silent.",
    "learner_slow": "The actors wait, and the learner has been in one phase for five times as long as a step takes.",
    "no_actor": "No live actor.",
    "actor_silent": "An actor stopped sending heartbeats and holds tickets, or was not replaced.",
    "weights_missing": "An actor finds no files of the version it needs: its machine lacks the mount, for instance.",
    "weights_corrupt": "An actor reads other files than were published.",
    "weights_unusable": "An actor's model does not take the published weights.",
    "weights_slow": "An actor holds tickets and waits for the files of a version.",
    "no_verifier": "Completions wait in a queue that no live verifier serves.",
    "verifier_silent": "A verifier stopped sending heartbeats and holds completions, or was not replaced.",
    "verifier_errors": "A verifier gives nothing but errors: a tool that it needs is away.",
    "service_trouble": "A service reports another reason why it cannot work.",
    "verdict_slow": "The learner waits, and no verdict comes from a queue that is served.",
    "ticket_slow": "The learner waits, and no completion comes: the oldest ticket takes five times as long as usual.",
    "ticket_reissued": "A ticket was issued four times and never finished: it may end its actors.",
    "tickets_waiting": "Tickets wait, and the actors wait for something else.",
    "queued_bytes": "No ticket is granted, because `broker.max_queued_bytes` are queued.",
    "staleness_bound": "No ticket is granted, because of the oldest group, and nothing else moves.",
    "all_dead_lettered": "Every completion so far was given up on.",
    "all_waiting": "Every service waits, and nothing of the above is the reason.",
}
STALL_KINDS: tuple[StallKind, ...] = typing.get_args(StallKind)
LASTING_SECONDS = 30.0
"""A stall is reported unasked after this time: services start, and start again after a failure, within it."""


@dataclass(frozen=True)
class Stall:
    """One place where the run cannot move."""

    kind: StallKind
    queue: str
    """The queue concerned (`tickets`, `verify:<name>`, `ready`), `broker`, `run`, or the id of a service."""
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.queue}: {self.reason}; {self.remedy}"


class LastingStalls:
    """The stalls that were found without a break for LASTING_SECONDS; for whoever diagnoses again and again."""

    def __init__(self) -> None:
        self._since: dict[tuple[StallKind, str], float] = {}

    def update(self, stalls: Sequence[Stall], now: float) -> list[Stall]:
        """Those of `stalls`, the newest diagnosis, that have lasted; `now` is a monotonic time in seconds."""
        self._since = {(stall.kind, stall.queue): self._since.get((stall.kind, stall.queue), now) for stall in stalls}
        return [stall for stall in stalls if now - self._since[stall.kind, stall.queue] >= LASTING_SECONDS]
