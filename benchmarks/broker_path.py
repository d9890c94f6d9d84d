"""Benchmark of the broker's path (offer → receive → judge → lease → groups → commit) against raw pipelined redis-py.

Both sides run in one process and thread, on one private server with a run's settings (append-only file, everysec), and
move the same payloads, one step's groups at a time in batches of 256. Tickets are taken and completions built
beforehand. The unit is completions per second.

Ours takes `Completion` objects and verdicts and returns `Group` objects. Payloads are packed, checked and validated on
both deliveries; each (group_id, idx) is recorded once, counted, ordered by age, fenced, leased and committed with a
tombstone, and its memory is accounted for.

Raw takes the packed bytes: XADD (pipelined), XREADGROUP, HSET of the payload and of a packed verdict into its group's
hash, pipelined with XACK + XDEL, HGETALL of each group (pipelined), DEL (pipelined). Every payload is thus delivered
once to a verifier and once to a learner, and freed. Raw does not pack or unpack anything, check anything, detect
repeats, know when a group is complete, keep order or age, bound memory, survive a lost reply without duplicates, or
redeliver a dead reader's work.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import redis

from benchmarks.measure import Row, alternate, row
from broker.queue.actor_client import ActorClient
from broker.queue.learner_client import LearnerClient
from broker.queue.scripts import connect
from broker.queue.state import RunSpec
from broker.queue.verifier_client import VerifierClient
from broker.queue.wire import Completion, Prompt, Ticket, Verdict, float32, int32, pack
from broker.runtime.redis_server import Server
from broker.settings import BrokerSettings, RunSettings

BATCH = 256
GROUP = 8
VERDICT = Verdict(outcome="pass", reason="correct", seconds=0.001, verifier="arithmetic/1", answer="1+2")
Side = Callable[[], float]


def measure(kilobytes: int, groups: int, rounds: int) -> tuple[Row, dict[str, float]]:
    """Completions per second of both sides with payloads of `kilobytes` KB, and our seconds by part of the path."""
    with tempfile.TemporaryDirectory() as directory:
        run = RunSettings(name="bench", directory=Path(directory))
        settings = BrokerSettings(max_queued_bytes=1 << 30)
        with Server.start(settings, run) as server, _Ours(settings, run, server.url, kilobytes, groups) as ours:
            raw = connect(server.url, socket_timeout=30.0)
            try:
                sides: dict[str, Side] = {"ours": ours, "raw": _Raw(raw, kilobytes, groups)}
                seen = alternate(sides, rounds)
            finally:
                raw.close()
    aim = "≥ 0.60" if kilobytes == 8 else ""
    parts = {name: seconds / (rounds + 1) / (groups * GROUP) * 1e6 for name, seconds in ours.seconds.items()}
    return row(f"broker path, {kilobytes} KB payloads", seen["ours"], seen["raw"], "completions/s", aim), parts


def completion(ticket: Ticket, idx: int, kilobytes: int) -> Completion:
    """A completion of the ticket, about `kilobytes` KB when packed: 8 bytes and one letter of text per token."""
    count = kilobytes * 1024 // 9 - 20
    return Completion(
        group_id=ticket.group_id,
        lane="train",
        prompt=ticket.prompt,
        idx=idx,
        n=ticket.n,
        tokens=int32(np.arange(count)),
        logprobs=float32(np.full(count, -0.5)),
        spans=((ticket.version, 0, count),),
        finish="stop",
        text="a" * count,
        actor="bench",
    )


class _Ours:
    """Moves one step's groups through the broker per call; timed from the first offer to the commit's reply."""

    def __init__(self, settings: BrokerSettings, run: RunSettings, url: str, kilobytes: int, groups: int) -> None:
        self.actor = ActorClient.connect(settings, run, url=url)
        self.verifier = VerifierClient.connect(settings, run, url=url)
        self.learner = LearnerClient.connect(settings, run, url=url)
        self.kilobytes, self.groups, self.steps = kilobytes, groups, 0
        self.seconds: dict[str, float] = {}
        spec = RunSpec(
            fingerprint="0" * 64,
            seed=0,
            steps=1000,
            group_size=GROUP,
            groups_per_step=groups,
            publish_every=1,
            max_staleness=1,
            max_queued_bytes=settings.max_queued_bytes,
            max_new_tokens=65536,
            train_prompts=512,
            eval_prompts=0,
            eos_token_ids=(1,),
            weights="unused",
        )
        prompts = [
            Prompt(
                index=index, text="a prompt", tokens=int32([index]), verifier="arithmetic", record={"numbers": [1, 2]}
            )
            for index in range(spec.train_prompts)
        ]
        self.epoch = self.learner.begin("learner")
        self.learner.open_run(self.epoch, spec, prompts, [])
        self.learner.publish(self.epoch, 0, 0)

    def __enter__(self) -> _Ours:
        return self

    def __exit__(self, *_: object) -> None:
        for client in (self.actor, self.verifier, self.learner):
            client.close()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the block's seconds to the part `name` of the path."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def __call__(self) -> float:
        count = self.groups * GROUP
        tickets = self.actor.take("bench", count).tickets
        completions = [completion(ticket, idx, self.kilobytes) for ticket in tickets for idx in ticket.missing]
        if len(completions) != count:
            raise RuntimeError(f"the broker granted {len(completions)} completions, not {count}")
        step = self.steps + 1
        start = time.perf_counter()
        for at in range(0, count, BATCH):
            with self.part("offer"):
                self.actor.offer("bench", completions[at : at + BATCH])
        judged = 0
        while judged < count:
            with self.part("receive"):
                works = self.verifier.receive("arithmetic", "bench", BATCH, 1.0)
            with self.part("judge"):
                replies = self.verifier.judge("arithmetic", "bench", [(work, VERDICT) for work in works])
                judged += replies.count("done")
        with self.part("lease"):
            group_ids = self.learner.lease(self.epoch, step, self.groups)
        if group_ids is None:
            raise RuntimeError("the groups are judged and not ready")
        with self.part("groups"):
            found = self.learner.groups(group_ids)
        with self.part("commit"):
            self.learner.commit(self.epoch, step, f"step-{step}")
        seconds = time.perf_counter() - start
        if sum(len(group.members) for group in found) != count:
            raise RuntimeError("a completion is missing")
        self.steps = step
        self.learner.publish(self.epoch, step, step)
        return count / seconds


class _Raw:
    """Moves the same payloads with plain pipelined commands; the module's docstring lists what it leaves out."""

    def __init__(self, client: redis.Redis, kilobytes: int, groups: int) -> None:
        self.client, self.groups = client, groups
        ticket = Ticket(group_id="0:0", lane="train", prompt=0, n=GROUP, seed=0, version=0, attempt=1, missing=())
        self.payloads = [pack(completion(ticket, idx, kilobytes)) for idx in range(GROUP)] * groups
        self.verdict = pack(VERDICT)
        client.xgroup_create("raw:queue", "verifiers", id="0", mkstream=True)

    def _pipeline(self) -> Any:
        return self.client.pipeline(transaction=False)

    def __call__(self) -> float:
        count = len(self.payloads)
        start = time.perf_counter()
        for at in range(0, count, BATCH):
            pipeline = self._pipeline()
            for number in range(at, min(at + BATCH, count)):
                pipeline.xadd("raw:queue", {"g": number // GROUP, "i": number % GROUP, "p": self.payloads[number]})
            pipeline.execute()
        judged = 0
        while judged < count:
            reply = cast(Any, self.client.xreadgroup("verifiers", "bench", {"raw:queue": ">"}, count=BATCH))
            entries = [entry for _, found in reply for entry in found]
            entries = entries if not entries or isinstance(entries[0], tuple) else entries[0]
            pipeline = self._pipeline()
            for entry, fields in entries:
                i = fields[b"i"].decode()
                pipeline.hset(
                    "raw:group:" + fields[b"g"].decode(), mapping={"c" + i: fields[b"p"], "j" + i: self.verdict}
                )
                pipeline.xack("raw:queue", "verifiers", entry)
                pipeline.xdel("raw:queue", entry)
            pipeline.execute()
            judged += len(entries)
        pipeline = self._pipeline()
        for number in range(self.groups):
            pipeline.hgetall(f"raw:group:{number}")
        found = pipeline.execute()
        pipeline = self._pipeline()
        for number in range(self.groups):
            pipeline.delete(f"raw:group:{number}")
        pipeline.execute()
        seconds = time.perf_counter() - start
        if sum(len(fields) for fields in found) != 2 * count:
            raise RuntimeError("a completion is missing")
        return count / seconds
