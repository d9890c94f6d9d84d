"""The actor's side of the protocol: take tickets, offer completions, release what will not be finished."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from broker.errors import BrokerError
from broker.queue.connection import RunConnection
from broker.queue.portions import portions
from broker.queue.prompt_order import lane_of, prompt_of, seed_of
from broker.queue.state import TicketBatch
from broker.queue.wire import Completion, Ticket, WireError, pack


class ActorClient(RunConnection):
    """An actor's connection to the run."""

    def take(self, actor: str, room: int) -> TicketBatch:
        """Tickets for up to `room` completions (the last group may exceed it): eval, then returned, then new ones.

        A train ticket must be sampled with its version or a newer one, an eval ticket with exactly its version. The
        actor holds its tickets while its heartbeat lives; `attempt` counts how often the group was granted.

        Raises:
            RunUnknown: no learner has opened the run.
        """
        spec = self._opened()
        if room <= 0:
            return TicketBatch(self.sampling_version(), [], "")
        version, reason, *granted = self.script(
            "take",
            actor=actor,
            room=room,
            token=uuid.uuid4().hex,
            groups_per_version=spec.groups_per_version,
            max_staleness=spec.max_staleness,
            max_queued_bytes=spec.max_queued_bytes,
            total_groups=spec.steps * spec.groups_per_step,
            train_prompts=spec.train_prompts,
            group_size=spec.group_size,
            forced_staleness=spec.forced_staleness,
        )
        tickets = []
        for raw_group_id, issued_at, attempt, n, *missing in granted:
            group_id = raw_group_id.decode()
            tickets.append(
                Ticket(
                    group_id=group_id,
                    lane=lane_of(group_id),
                    prompt=prompt_of(group_id, spec.seed, spec.train_prompts),
                    n=n,
                    seed=seed_of(group_id, spec.seed),
                    version=issued_at,
                    attempt=attempt,
                    missing=tuple(missing),
                )
            )
        return TicketBatch(int(version), tickets, reason.decode())

    def release(self, actor: str, group_ids: Sequence[str]) -> int:
        """Give tickets back unfinished; what was offered of them stays. Returns how many were still held."""
        return int(self.script("release", actor=actor, group_ids=group_ids)) if group_ids else 0

    def offer(self, actor: str, completions: Sequence[Completion]) -> list[str]:
        """Send completions to their verifiers' queues. Safe to repeat.

        Returns per completion `new`, `duplicate`, or `stale` (another actor holds the ticket now, or the group ended).

        Raises:
            BrokerError: a completion does not fit its ticket (version or index): an error of the actor.
            WireError: a completion exceeds broker.max_item_bytes.
            BrokerFull: Redis is at its memory limit; repeat the call later.
        """
        payloads = [self._pack(completion) for completion in completions]
        self._load_prompts((completion.lane, completion.prompt) for completion in completions)
        calls: list[dict[str, Any]] = []
        for start, end in portions([len(payload) for payload in payloads]):
            records = [
                {
                    "group_id": c.group_id,
                    "idx": c.idx,
                    "oldest": c.oldest,
                    "newest": max(version for version, _, _ in c.spans),
                    "verifier": self.prompt(c.lane, c.prompt).verifier,
                    "bytes": len(payload),
                }
                for c, payload in zip(completions[start:end], payloads[start:end], strict=True)
            ]
            calls.append({"actor": actor, "payloads": b"".join(payloads[start:end]), "completions": records})
        answers = [answer.decode() for reply in self._scripts.many("offer", calls) for answer in reply]
        for completion, answer in zip(completions, answers, strict=True):
            if answer.startswith("refused"):
                raise BrokerError(f"completion {completion.group_id}/{completion.idx} {answer}")
        return answers

    def _pack(self, completion: Completion) -> bytes:
        payload, limit = pack(completion), self.settings.max_item_bytes
        if len(payload) > limit:
            raise WireError(
                f"Completion: {completion.group_id}/{completion.idx} has {len(payload)} bytes, over "
                f"broker.max_item_bytes = {limit}: raise it, or lower sampling.max_new_tokens"
            )
        return payload

    def sampling_version(self) -> int:
        """The version to sample train groups with: the newest, less schedule.forced_staleness."""
        return max(0, self.version() - self._opened().forced_staleness)
