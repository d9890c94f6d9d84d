"""The run's state machine, as one method per arrow. Each arrow is one Lua script in `lua/`, atomic and safe to repeat.

    TICKET take, release   OFFER offer   JUDGE receive, judge, requeue   READY (inside judge)   LEASE lease, groups
    COMMIT commit            weights: publish     evaluation: request_eval, eval_ready, eval_done

Keys, all under `{sieve:<run>}:` (one hash tag, one slot):

    spec, prompts:<lane>     what the run is; written once
    state                    counters and pointers: version, steps, issued, absorbed, bytes, epoch …
    group:<group_id>         hash: lane, order, n, version, absorbed, attempt, left, judged, short, oldest, bytes; per i
                             o<i> offered, c<i> completion, j<i> verdict, b<i> base log-probs
    held, returned, evalq    tickets: held by an actor; waiting to be issued again; held-out, waiting
    verify:<verifier>        stream with consumer group `verifiers`
    ready:train, lease:<step>, leased      finished groups, and what the learner holds
    open, live               train groups not yet leased (score: absorbed at issue); not yet committed or dropped
    done, dropped            bitmaps over ticket numbers: the tombstones
    dead                     stream of dead letters with their reasons
    canaries, canary-reports               see broker/weights/canary.py
    z, evals, services, seen, grants       Z statistics; evaluations; liveness; last grant per actor

Shared by the runs of one server, under `{sieve-verdicts}:`: verdicts (content hash → verdict), used (hash by last use),
counts (bytes, hits and misses).
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import redis

from broker.errors import BrokerError, BrokerUnavailable, RunConflict, RunUnknown
from broker.queue import scripts
from broker.queue.heartbeat import Heartbeat
from broker.queue.prompt_order import prompt_of, seed_of
from broker.queue.state import Audit, CommitReply, DeadLetter, Depths, Epoch, Group, Member, RunSpec, TicketBatch, Work
from broker.queue.wire import Completion, Prompt, Ticket, Verdict, WireError, pack, unpack
from broker.settings import BrokerSettings, Lane, RunSettings

_BATCH = 256  # commands per pipeline or script call: large enough to hide round trips, small enough not to stall others
_PORTION = 1 << 18  # payload bytes per script call: the server works on one portion while the next is on its way


class Broker:
    """One service's connection to one run. Safe to use from several threads."""

    def __init__(self, client: redis.Redis, url: str, settings: BrokerSettings, run: RunSettings) -> None:
        self.settings = settings
        self.run = run
        self.prefix = "{sieve:" + run.name + "}"
        self._redis = client
        # Blocking reads have their own connections, whose socket timeout exceeds the longest BLOCK.
        self._blocking = scripts.connect(url, socket_timeout=_LONGEST_BLOCK + 5.0)
        self._scripts = scripts.Scripts(client, self.prefix, settings.connect_seconds)
        self._cache = scripts.Scripts(client, _CACHE, settings.connect_seconds)
        self._spec: RunSpec | None = None
        self._prompts: dict[tuple[Lane, int], Prompt] = {}
        self._joined: set[str] = set()
        self._claimed_at: dict[str, float] = {}

    @classmethod
    def connect(cls, settings: BrokerSettings, run: RunSettings, *, url: str | None = None) -> Broker:
        """Connect to `url`, else `settings.url`, and wait for the server at most `settings.connect_seconds`.

        Raises:
            BrokerUnavailable: no url, no answer by the deadline, a refused password, or a server older than 6.2.
        """
        if url is None:
            if settings.url is None:
                raise BrokerUnavailable(
                    "no Redis to connect to: set broker.url, or start `sieve broker CONFIG` or `sieve run CONFIG` "
                    "first",
                    lasting=True,
                )
            url = settings.url.get_secret_value()
        try:
            client = scripts.connect(url, socket_timeout=10.0)
        except ValueError as error:
            raise BrokerUnavailable(
                f"broker.url cannot be read ({error}): use redis://, rediss:// or unix://", lasting=True
            ) from None
        info = scripts.repeat(
            lambda: client.info("server"), deadline_seconds=settings.connect_seconds, what="connecting to Redis"
        )
        version = str(info["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < (6, 2):
            raise BrokerUnavailable(f"Redis {version} is too old: 6.2 or newer is needed", lasting=True)
        return cls(client, url, settings, run)

    def close(self) -> None:
        self._redis.close()
        self._blocking.close()

    def _key(self, name: str) -> str:
        return f"{self.prefix}:{name}"

    # ------------------------------------------------------------------------------------------------ other rooms

    def script(self, name: str, *args: str | bytes | int | float) -> Any:
        """Run one of `lua/` for state whose methods are elsewhere (broker/weights: canary, broadcast)."""
        return self._scripts(name, *args)

    def fields(self, name: str, wanted: Sequence[str]) -> list[bytes | None]:
        """Fields of the hash `name`; None where there is none."""
        found = self._scripts.retry(lambda: self._redis.hmget(self._key(name), list(wanted)), f"reading {name}")
        return cast(list[bytes | None], found)

    # ------------------------------------------------------------------------------------------------ the run

    def open_run(self, spec: RunSpec, train: Sequence[Prompt], eval_prompts: Sequence[Prompt]) -> None:
        """Write the run's specification and prompts; opening it again with the same fingerprint only refreshes the
        schedule.

        Raises:
            RunConflict: a run of this name was opened with another base model, other prompts, seed or sampling.
        """
        there = self.run_spec(fresh=True)
        if there is not None and there.fingerprint != spec.fingerprint:
            raise RunConflict(
                f"run {self.run.name!r} is in Redis with other settings (fingerprint {there.fingerprint[:12]}, now "
                f"{spec.fingerprint[:12]}): model, prompts, seed and sampling are fixed within a run; choose another "
                f"run.name"
            )

        def write() -> None:
            for lane, prompts in (("train", train), ("eval", eval_prompts)):
                for start in range(0, len(prompts), _BATCH):
                    batch: dict[Any, Any] = {
                        str(prompt.index): pack(prompt) for prompt in prompts[start : start + _BATCH]
                    }
                    self._redis.hset(self._key(f"prompts:{lane}"), mapping=batch)
            # Last: whoever sees the specification finds every prompt.
            self._redis.set(self._key("spec"), spec.model_dump_json())

        self._scripts.retry(write, "opening the run")
        self._spec = spec

    def run_spec(self, *, fresh: bool = False) -> RunSpec | None:
        """The run's specification, None until a learner has opened the run."""
        if self._spec is None or fresh:
            data = self._scripts.retry(lambda: self._redis.get(self._key("spec")), "reading the run")
            self._spec = RunSpec.model_validate_json(cast(bytes, data)) if data else None
        return self._spec

    def _opened(self) -> RunSpec:
        spec = self.run_spec()
        if spec is None:
            raise RunUnknown(f"no learner has opened run {self.run.name!r} yet: start `sieve learner CONFIG`")
        return spec

    def prompt(self, lane: Lane, index: int) -> Prompt:
        """One prompt, cached."""
        found = self._prompts.get((lane, index))
        if found is None:
            data = self._scripts.retry(
                lambda: self._redis.hget(self._key(f"prompts:{lane}"), str(index)), "reading a prompt"
            )
            if data is None:
                raise WireError(f"Prompt: no prompt {index} in the {lane} lane")
            found = self._prompts[(lane, index)] = unpack(Prompt, cast(bytes, data))
        return found

    # ------------------------------------------------------------------------------------------------ actor

    def take(self, actor: str, room: int) -> TicketBatch:
        """Tickets for up to `room` completions (the last group may exceed it): eval, then returned, then new ones.

        A train ticket must be sampled with its version or a newer one, an eval ticket with exactly its version. The
        actor holds its tickets while its heartbeat lives; `attempt` counts how often the group was granted.
        """
        spec = self._opened()
        if room <= 0:
            return TicketBatch(self.sampling_version(), [], "")
        reply = self._scripts(
            "take", actor, room, uuid.uuid4().hex, spec.groups_per_step * spec.publish_every, spec.max_staleness,
            spec.max_queued_bytes, spec.steps * spec.groups_per_step, spec.train_prompts, spec.group_size,
            spec.forced_staleness,
        )  # fmt: skip
        tickets = []
        for raw_group_id, version, attempt, n, *missing in reply[2:]:
            group_id = raw_group_id.decode()
            tickets.append(
                Ticket(
                    group_id=group_id,
                    lane="eval" if group_id[0] == "e" else "train",
                    prompt=prompt_of(group_id, spec.seed, spec.train_prompts),
                    n=n,
                    seed=seed_of(group_id, spec.seed),
                    version=version,
                    attempt=attempt,
                    missing=tuple(missing),
                )
            )
        return TicketBatch(int(reply[0]), tickets, reply[1].decode())

    def release(self, actor: str, group_ids: Sequence[str]) -> int:
        """Give tickets back unfinished; what was offered of them stays. Returns how many were still held."""
        return int(self._scripts("release", actor, *group_ids)) if group_ids else 0

    def offer(self, actor: str, completions: Sequence[Completion]) -> list[str]:
        """Hand completions to their verifiers. Per completion `new`, `duplicate`, or `stale` (the ticket is another's
        now).

        Raises:
            BrokerError: a completion breaks its ticket (wrong version or index): a fault of the actor.
            WireError: a completion exceeds broker.max_item_bytes.
            BrokerFull: Redis is at its memory limit; repeat the call later.
        """
        packed: list[bytes] = []
        for c in completions:
            payload = pack(c)
            if len(payload) > self.settings.max_item_bytes:
                raise WireError(
                    f"Completion: {c.group_id}/{c.idx} has {len(payload)} bytes, over broker.max_item_bytes = "
                    f"{self.settings.max_item_bytes}: raise it, or lower sampling.max_new_tokens"
                )
            packed.append(payload)
        calls: list[list[str | bytes | int]] = []
        for start, end in _portions([len(payload) for payload in packed]):
            args: list[str | bytes | int] = [actor, b"".join(packed[start:end])]
            for c, payload in zip(completions[start:end], packed[start:end], strict=True):
                newest = max(version for version, _, _ in c.spans)
                args += [c.group_id, c.idx, c.oldest, newest, self.prompt(c.lane, c.prompt).verifier, len(payload)]
            calls.append(args)
        answers = [answer.decode() for reply in self._scripts.many("offer", calls) for answer in reply]
        for completion, answer in zip(completions, answers, strict=True):
            if answer.startswith("refused"):
                raise BrokerError(f"completion {completion.group_id}/{completion.idx} {answer}")
        return answers

    # ------------------------------------------------------------------------------------------------ verifier

    def receive(self, verifier: str, consumer: str, count: int, block_seconds: float) -> list[Work]:
        """Up to `count` completions to judge, waiting at most `block_seconds` (≤ 30) for the first.

        What a dead consumer left comes first, once its idle time exceeds the lease. What cannot be read is
        dead-lettered here. An entry this consumer already answered with `error` goes to another living consumer if
        there is one.
        """
        if not 0 <= block_seconds <= _LONGEST_BLOCK:
            raise ValueError(f"block_seconds = {block_seconds}, must be within 0 and {_LONGEST_BLOCK:g}")
        queue = self._key(f"verify:{verifier}")
        entries: list[tuple[bytes, dict[bytes, bytes]]] = []
        try:
            if verifier not in self._joined:
                self._scripts.retry(lambda: self._join(queue), "joining the verify queue")
                self._joined.add(verifier)
            if time.monotonic() - self._claimed_at.get(verifier, -1e9) > self.settings.lease_seconds / 2:
                idle = int(self.settings.lease_seconds * 1000)
                claimed = self._scripts.retry(
                    lambda: self._redis.xautoclaim(queue, "verifiers", consumer, idle, count=count),
                    "claiming left work",
                )
                entries = [(entry, fields) for entry, fields in cast(Any, claimed)[1] if fields]
                if len(entries) < count:  # a full claim says there may be more
                    self._claimed_at[verifier] = time.monotonic()
            if not entries:
                reply = self._scripts.retry(
                    lambda: self._blocking.xreadgroup(
                        "verifiers", consumer, {queue: ">"}, count=count, block=int(block_seconds * 1000) or None
                    ),
                    "reading the verify queue",
                )
                for _, found in cast(Any, reply) or []:
                    entries += found if not found or isinstance(found[0], tuple) else found[0]
        except BrokerError as error:
            if "NOGROUP" in str(error):  # the server lost its data; join again with the next call
                self._joined.discard(verifier)
            raise
        return [
            work
            for entry, fields in entries
            if (work := self._read(verifier, consumer, entry.decode(), fields)) is not None
        ]

    def _join(self, queue: str) -> None:
        # Look first: at its memory limit Redis refuses XGROUP CREATE, even of a group that exists.
        if self._redis.exists(queue) and self._redis.xinfo_groups(queue):
            return
        try:
            self._redis.xgroup_create(queue, "verifiers", id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def _read(self, verifier: str, consumer: str, entry: str, fields: dict[bytes, bytes]) -> Work | None:
        try:
            completion = unpack(Completion, fields.get(b"p", b""), max_bytes=self.settings.max_item_bytes)
            where = (fields.get(b"g", b"").decode(), fields.get(b"i", b"").decode())
            if where != (completion.group_id, str(completion.idx)):
                raise WireError("Completion: not the one its queue entry names")
            prompt = self.prompt(completion.lane, completion.prompt)
            attempt = int(fields[b"t"]) + 1
        except (WireError, KeyError, ValueError) as error:
            reason = str(error)[:200] if isinstance(error, WireError) else f"queue entry: {type(error).__name__}"
            self._scripts(
                "judge", verifier, consumer, self.settings.verify_attempts, entry, "", "", "malformed", reason, b""
            )
            return None
        tried = {name.decode() for name in fields.get(b"w", b"").split()}
        if consumer in tried and self._others(verifier, tried):
            self.requeue(verifier, consumer, [Work(entry, completion, prompt, attempt)])
            time.sleep(0.05)  # do not spin on one entry while the other consumer is busy
            return None
        return Work(entry, completion, prompt, attempt)

    def _others(self, verifier: str, tried: set[str]) -> bool:
        """Whether a living consumer has not tried yet; without one, those who have must try again."""
        queue = self._key(f"verify:{verifier}")
        consumers = self._scripts.retry(lambda: self._redis.xinfo_consumers(queue, "verifiers"), "counting consumers")
        names = {c["name"].decode() for c in consumers} - tried
        alive = {heartbeat.id for heartbeat in self.services() if heartbeat.age_seconds < self.settings.lease_seconds}
        return bool(names & alive)

    def keep(self, verifier: str, consumer: str, entries: Sequence[str]) -> None:
        """Still judging these: resets their idle time, so that nobody else takes them."""
        for start in range(0, len(entries), _BATCH):
            batch = list(entries[start : start + _BATCH])
            self._scripts.retry(
                lambda batch=batch: self._redis.xclaim(  # type: ignore[misc]
                    self._key(f"verify:{verifier}"), "verifiers", consumer, 0, batch, justid=True
                ),
                "keeping work",
            )

    def judge(self, verifier: str, consumer: str, verdicts: Sequence[tuple[Work, Verdict]]) -> list[str]:
        """Record verdicts. Per verdict `done`, `duplicate`, `retry` (an error, tried again elsewhere) or `dead`."""
        calls: list[list[str | bytes | int]] = []
        sizes = [len(work.completion.tokens) * 2 + len(work.completion.text) for work, _ in verdicts]
        for start, end in _portions(sizes):
            args: list[str | bytes | int] = [verifier, consumer, self.settings.verify_attempts]
            for work, verdict in verdicts[start:end]:
                c = work.completion
                args += [work.entry, c.group_id, c.idx, verdict.outcome, verdict.reason, pack(verdict)]
            calls.append(args)
        return [answer.decode() for reply in self._scripts.many("judge", calls) for answer in reply]

    def requeue(self, verifier: str, consumer: str, works: Sequence[Work]) -> int:
        """Give work back unjudged: the next reader gets it at once, its attempts unchanged."""
        return int(self._scripts("requeue", verifier, consumer, *[work.entry for work in works])) if works else 0

    def leave(self, verifier: str, consumer: str) -> None:
        """Stop being a consumer of this queue. Only with nothing in hand: what is still pending would be forgotten."""
        queue = self._key(f"verify:{verifier}")
        pending = cast(
            list[Any],
            self._scripts.retry(
                lambda: self._redis.xpending_range(queue, "verifiers", "-", "+", 1, consumer), "leaving"
            ),
        )
        if not pending:
            self._scripts.retry(lambda: self._redis.xgroup_delconsumer(queue, "verifiers", consumer), "leaving")

    # ------------------------------------------------------------------------------------------------ learner

    def begin(self, learner: str, step: int = 0) -> Epoch:
        """Take the run, with the durable checkpoint of `step` loaded (0: none). Fences every earlier learner.

        Groups leased for later steps become ready again; those up to `step` wait for `commit(step)`, which the
        learner calls next.

        Raises:
            RunBusy: another learner's heartbeat is younger than broker.lease_seconds.
            RunConflict: `step` is older than what is committed.
        """
        spec = self._opened()
        number, committed, version, returned, opened = self._scripts(
            "begin", learner, step, spec.groups_per_step, self.settings.lease_seconds, 0
        )
        return Epoch(number, committed, version, returned, bool(opened))

    def lease(self, epoch: Epoch, step: int, groups: int) -> list[str] | None:
        """`groups` finished groups for optimiser step `step`, oldest version first; None while too few are ready."""
        spec = self._opened()
        per_version = spec.groups_per_step * spec.publish_every
        group_ids = self._scripts("lease", epoch.number, step, groups, per_version, spec.max_staleness)
        return [group_id.decode() for group_id in group_ids] or None

    def groups(self, group_ids: Sequence[str]) -> list[Group]:
        """The payloads of finished groups, in the order asked for."""
        spec = self._opened()
        found: list[Group] = []
        for start in range(0, len(group_ids), _BATCH):
            batch = group_ids[start : start + _BATCH]

            def read(batch: Sequence[str] = batch) -> list[dict[bytes, bytes]]:
                pipeline = self._redis.pipeline(transaction=False)
                for group_id in batch:
                    pipeline.hgetall(self._key(f"group:{group_id}"))
                return cast(list[dict[bytes, bytes]], pipeline.execute())

            for group_id, fields in zip(batch, self._scripts.retry(read, "fetching groups"), strict=True):
                if not fields:
                    raise BrokerError(f"group {group_id} is gone: it was committed or dropped by someone else")
                found.append(_group(group_id, fields, prompt_of(group_id, spec.seed, spec.train_prompts)))
        return found

    def store_base(self, scores: Mapping[tuple[str, int], bytes]) -> None:
        """Base log-probs beside their completions (float32 bytes per token), so that each is scored once."""
        items = list(scores.items())
        for start in range(0, len(items), _BATCH):
            args: list[str | bytes | int] = []
            for (group_id, idx), data in items[start : start + _BATCH]:
                args += [group_id, idx, data]
            self._scripts("store_base", *args)

    def publish(self, epoch: Epoch, version: int, step: int, *, admitted: int | None = None) -> None:
        """The files of `version`, holding `step` optimiser steps, are complete: actors may load it.

        `admitted`: the staleness that admission aims at from now on (`admission.tightened`); None leaves it.

        Raises:
            BrokerError: a newer version is already published; versions only grow.
        """
        spec = self._opened()
        allowed = "" if admitted is None else admitted
        if not self._scripts("publish", epoch.number, version, step, spec.groups_per_step, allowed):
            raise BrokerError(f"version {version} is not newer than the published version {self.version()}")

    def version(self) -> int:
        """Newest published version (0 also before the base is published)."""
        value = self._scripts.retry(lambda: self._redis.hget(self._key("state"), "version"), "reading the version")
        return int(cast(bytes, value) or 0)

    def sampling_version(self) -> int:
        """The version train groups are sampled with now: the newest, or what schedule.forced_staleness makes of it."""
        return max(0, self.version() - self._opened().forced_staleness)

    def admitted(self) -> int:
        """The staleness that admission aims at now, never more than schedule.max_staleness."""
        value = self._scripts.retry(lambda: self._redis.hget(self._key("state"), "admitted"), "reading the state")
        bound = self._opened().max_staleness
        return bound if value is None else min(bound, int(cast(bytes, value)))

    def commit(self, epoch: Epoch, step: int, z: Mapping[int, bytes] | None = None) -> CommitReply:
        """A durable checkpoint holds all steps up to `step`: their groups become tombstones, Z advances with them.

        `z` maps a train prompt to its packed Z statistics as of this step. Safe to repeat.
        """
        args: list[str | bytes | int] = []
        for prompt, data in (z or {}).items():
            args += [prompt, data]
        groups, duplicates = self._scripts("commit", epoch.number, step, *args)
        return CommitReply(groups, duplicates)

    def z(self) -> dict[int, bytes]:
        """Packed Z statistics per train prompt, as of the last commit."""
        raw = self._scripts.retry(lambda: self._redis.hgetall(self._key("z")), "reading Z")
        return {int(prompt): data for prompt, data in cast(dict[bytes, bytes], raw).items()}

    def request_eval(self, epoch: Epoch, version: int, prompts: int, n: int) -> None:
        """Held-out tickets for the first `prompts` held-out prompts, pinned to `version`. Safe to repeat."""
        self._scripts("request_eval", epoch.number, version, prompts, n)

    def eval_open(self) -> dict[int, int]:
        """Evaluations asked for and not yet done: version → groups still missing."""
        raw = cast(
            dict[bytes, bytes], self._scripts.retry(lambda: self._redis.hgetall(self._key("evals")), "reading evals")
        )
        waiting = {int(version): int(groups) for version, groups in raw.items() if groups != b"done"}
        return {version: groups - len(self.eval_ready(version)) for version, groups in sorted(waiting.items())}

    def eval_ready(self, version: int) -> list[str]:
        """The finished groups of an evaluation."""
        found = self._scripts.retry(
            lambda: self._redis.smembers(self._key(f"ready:eval:{version}")), "reading an evaluation"
        )
        return sorted(
            (group_id.decode() for group_id in cast(set[bytes], found)),
            key=lambda group_id: int(group_id.split(":")[1]),
        )

    def eval_done(self, epoch: Epoch, version: int) -> None:
        """The evaluation is written down: frees its groups. Safe to repeat."""
        self._scripts("eval_done", epoch.number, version)

    def finish(self, epoch: Epoch) -> None:
        """The run is over: actors and verifiers end when they next ask."""
        self._scripts("finish", epoch.number)

    def finished(self) -> bool:
        value = self._scripts.retry(lambda: self._redis.hget(self._key("state"), "finished"), "reading the state")
        return value == b"1"

    # ------------------------------------------------------------------------------------------------ everyone

    def heartbeat(self, heartbeat: Heartbeat) -> None:
        """A sign of life; phase `stopped` is the last one. Also gives back what dead actors held."""
        body = heartbeat.model_dump_json(exclude={"age_seconds"})
        self._scripts("heartbeat", heartbeat.id, body, heartbeat.phase, self.settings.lease_seconds)

    def services(self) -> list[Heartbeat]:
        """Every service seen lately, with the age of its last sign of life, by role and index."""
        raw = self._scripts("services")
        found = []
        for body, age in zip(raw[::2], raw[1::2], strict=True):
            found.append(Heartbeat.model_validate_json(body).model_copy(update={"age_seconds": float(age)}))
        return sorted(found, key=lambda heartbeat: (heartbeat.role, heartbeat.index, heartbeat.id))

    def depths(self) -> Depths:
        """What waits where, at this moment."""
        return Depths.model_validate(json.loads(self._scripts("depths")))

    def audit(self) -> Audit:
        """Account for every issued group and every completion."""
        return Audit.model_validate(json.loads(self._scripts("audit")))

    def dead_letters(self, count: int = 100) -> list[DeadLetter]:
        """The newest dead letters with their reasons."""
        raw = self._scripts.retry(lambda: self._redis.xrevrange(self._key("dead"), count=count), "reading dead letters")
        letters = []
        for entry, f in cast(Iterable[tuple[bytes, dict[bytes, bytes]]], raw):
            text = {
                name: f.get(name.encode(), b"").decode("utf-8", "replace") for name in ("g", "i", "verifier", "reason")
            }
            verdict = unpack(Verdict, f[b"verdict"]) if f.get(b"verdict") else None
            letters.append(
                DeadLetter(
                    entry.decode(),
                    text["g"],
                    text["i"],
                    text["verifier"],
                    text["reason"],
                    verdict,
                    len(f.get(b"p", b"")),
                )
            )
        return letters

    def retry_dead(self, entry: str) -> str:
        """Give a dead letter back to its verifier's queue with all its attempts before it. Safe to repeat.

        Answers `retried`; `gone` (no such letter, or retried already); `closed` (too late: its group is trained, read
        or ended); `unreadable` (what is stored is not a completion, so no verifier could ever judge it).
        """
        if not re.fullmatch(r"[0-9]{1,20}-[0-9]{1,20}", entry):
            return "gone"
        raw = self._scripts.retry(lambda: self._redis.xrange(self._key("dead"), entry, entry), "reading a dead letter")
        if not raw:
            return "gone"
        try:
            completion = unpack(Completion, cast(Any, raw)[0][1].get(b"p", b""), max_bytes=self.settings.max_item_bytes)
        except WireError:
            return "unreadable"
        return str(self._scripts("retry_dead", entry, completion.oldest).decode())

    # ------------------------------------------------------------------------------------------------ verdict cache

    def known_verdicts(self, verifier: str, keys: Sequence[bytes]) -> list[Verdict | None]:
        """Verdicts stored under content hashes, by any run on this server; None where there is none. Counts hits."""
        found: list[Verdict | None] = []
        for start in range(0, len(keys), _BATCH):
            for body in self._cache("cache_get", verifier, *keys[start : start + _BATCH]):
                try:
                    found.append(unpack(Verdict, body) if body else None)
                except WireError:  # written by another release: judged again, and it will grow old unused
                    found.append(None)
        return found

    def remember_verdicts(self, verdicts: Mapping[bytes, Verdict], max_bytes: int) -> int:
        """Store verdicts under content hashes, `pass` and `fail` only; at most `max_bytes` of Redis's memory in all.

        The least recently used make room. Returns how many did.

        Raises:
            ValueError: an `error` among them: it says nothing about the answer and must not be repeated from memory.
            BrokerFull: Redis is at its memory limit. Nothing was stored; nothing else is affected.
        """
        if any(verdict.outcome == "error" for verdict in verdicts.values()):
            raise ValueError("an error is not a verdict on the answer: only pass and fail may be remembered")
        items, evicted = list(verdicts.items()), 0
        for start in range(0, len(items), _BATCH):
            args: list[bytes | int] = [max_bytes]
            for key, verdict in items[start : start + _BATCH]:
                args += [key, pack(verdict)]
            evicted += int(self._cache("cache_put", *args))
        return evicted

    def cache_counts(self) -> dict[str, int]:
        """`bytes`, and `hits:<verifier>` and `misses:<verifier>` since the cache began, of all runs on this server."""
        raw = self._scripts.retry(lambda: self._redis.hgetall(f"{_CACHE}:counts"), "reading the verdict cache")
        return {name.decode(): int(count) for name, count in cast(dict[bytes, bytes], raw).items()}


_CACHE = "{sieve-verdicts}"
"""Prefix of the verdict cache: its own hash tag, since it belongs to no run."""
_LONGEST_BLOCK = 30.0


def _portions(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Half-open ranges of items, one script call each: at most _BATCH items, and _PORTION bytes unless one has more."""
    portions: list[tuple[int, int]] = []
    start = total = 0
    for at, size in enumerate(sizes):
        if at > start and (at - start == _BATCH or total + size > _PORTION):
            portions.append((start, at))
            start, total = at, 0
        total += size
    return [*portions, (start, len(sizes))] if sizes else []


def _group(group_id: str, fields: dict[bytes, bytes], prompt: int) -> Group:
    n = int(fields[b"n"])
    members = []
    for i in range(n):
        verdict = fields.get(b"j%d" % i)
        if verdict is not None:
            base = fields.get(b"b%d" % i)
            members.append(
                Member(
                    unpack(Completion, fields[b"c%d" % i]),
                    unpack(Verdict, verdict),
                    None if base is None else np.frombuffer(base, "<f4"),
                )
            )
    return Group(
        group_id=group_id,
        prompt=prompt,
        n=n,
        version=int(fields[b"version"]),
        oldest=int(fields.get(b"oldest", fields[b"version"])),
        closed_short=int(fields.get(b"short", 0)),
        ready_at=float(fields.get(b"ready_at", 0)),
        members=members,
    )
