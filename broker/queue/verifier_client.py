"""The verifier's side of the protocol: receive completions, judge or requeue them, look verdicts up in the cache."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import redis

from broker.errors import BrokerError
from broker.queue import scripts
from broker.queue.connection import VERDICT_CACHE, RunConnection
from broker.queue.portions import chunks, portions
from broker.queue.state import Work
from broker.queue.wire import Completion, Verdict, WireError, pack, unpack
from broker.settings import BrokerSettings, RunSettings

LONGEST_BLOCK = 30.0
"""Most seconds that `receive` may wait."""
GROUP = "verifiers"
"""The consumer group of every verify queue."""

Entry = tuple[bytes, dict[bytes, bytes]]


class VerifierClient(RunConnection):
    """A verifier's connection to the run."""

    def __init__(self, redis_client: redis.Redis, url: str, settings: BrokerSettings, run: RunSettings) -> None:
        super().__init__(redis_client, url, settings, run)
        # Blocking reads have their own connections, whose socket timeout exceeds the longest wait.
        self._blocking = scripts.connect(url, socket_timeout=LONGEST_BLOCK + 5.0)
        self._cache = scripts.Scripts(redis_client, VERDICT_CACHE, settings.connect_seconds)
        self._joined: set[str] = set()
        self._looked_at: dict[str, float] = {}

    def close(self) -> None:
        """Close the connections."""
        super().close()
        self._blocking.close()

    # --- the verify queues

    def receive(
        self, verifier: str, consumer: str, count: int, block_seconds: float, *, free: bool = True
    ) -> list[Work]:
        """Up to `count` completions to judge, waiting at most `block_seconds` (≤ 30) for the first.

        What a dead consumer left comes first, once its idle time exceeds the lease: one completion at a time, marked
        `alone`, since it may be what ended that consumer, and only if the caller holds nothing else (`free`). Each such
        delivery is an attempt. What cannot be read, and what was given to `verify_attempts` consumers in vain, is
        dead-lettered here. An entry that this consumer answered with `error` before goes to another living consumer if
        there is one.

        Raises:
            ValueError: block_seconds is outside [0, 30].
        """
        if not 0 <= block_seconds <= LONGEST_BLOCK:
            raise ValueError(f"block_seconds = {block_seconds}, must be within 0 and {LONGEST_BLOCK:g}")
        try:
            self._join(verifier)
            left = self._left_behind(verifier, consumer) if free else None
            if left is not None:
                entry, used = left
                works, malformed = self._read([entry])
                found = [replace(work, attempt=used + 1, alone=True) for work, _ in works]
            else:
                works, malformed = self._read(self._new(verifier, consumer, count, block_seconds))
                found = [work for work, tried in works if self._may_try(verifier, consumer, work, tried)]
        except BrokerError as error:
            if "NOGROUP" in str(error):  # the server lost its data; join again with the next call
                self._joined.discard(verifier)
            raise
        if malformed:
            self.script("judge", **self._verdicts(verifier, consumer, malformed))
        return found

    def has_left_behind(self, verifier: str) -> bool:
        """Whether dead consumers left work that `receive` would give to a caller that is `free`; looked for twice
        within a lease, and at once after some was found."""
        now = time.monotonic()
        if now - self._looked_at.get(verifier, float("-inf")) <= self.settings.lease_seconds / 2:
            return False
        queue, idle = self._queue(verifier), int(self.settings.lease_seconds * 1000)
        try:
            self._join(verifier)
            pending = self._retry(
                lambda: self._redis.xpending_range(queue, GROUP, "-", "+", 1, idle=idle), "looking for abandoned work"
            )
        except BrokerError as error:
            if "NOGROUP" in str(error):
                self._joined.discard(verifier)
            raise
        if not cast(list[Any], pending):
            self._looked_at[verifier] = now
            return False
        return True

    def _join(self, verifier: str) -> None:
        queue = self._queue(verifier)

        def join() -> None:
            # Look first: at its memory limit Redis refuses XGROUP CREATE, even of a group that exists.
            if self._redis.exists(queue) and self._redis.xinfo_groups(queue):
                return
            try:
                self._redis.xgroup_create(queue, GROUP, id="0", mkstream=True)
            except redis.ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

        if verifier not in self._joined:
            self._retry(join, "joining the verify queue")
            self._joined.add(verifier)

    def _left_behind(self, verifier: str, consumer: str) -> tuple[Entry, int] | None:
        """An entry of a dead consumer, claimed, and the attempts before this one."""
        if not self.has_left_behind(verifier):
            return None
        idle = int(self.settings.lease_seconds * 1000)
        attempts = self.settings.verify_attempts
        claimed = self.script("claim", verifier=verifier, consumer=consumer, attempts=attempts, idle=idle)
        if not claimed:
            return None
        entry, fields, used = claimed
        return (entry, dict(zip(fields[::2], fields[1::2], strict=True))), int(used)

    def _new(self, verifier: str, consumer: str, count: int, block_seconds: float) -> list[Entry]:
        queue, block = self._queue(verifier), int(block_seconds * 1000) or None
        reply = self._retry(
            lambda: self._blocking.xreadgroup(GROUP, consumer, {queue: ">"}, count=count, block=block),
            "reading the verify queue",
        )
        entries: list[Entry] = []
        for _, found in cast(Any, reply) or []:
            entries += found if not found or isinstance(found[0], tuple) else found[0]
        return entries

    def _read(self, entries: Sequence[Entry]) -> tuple[list[tuple[Work, set[str]]], list[dict[str, str | bytes]]]:
        """Work, each with the consumers that have tried it; and records for judge.lua of what cannot be read."""
        works: list[tuple[Work, set[str]]] = []
        malformed: list[dict[str, str | bytes]] = []
        completions = [self._completion(fields) for _, fields in entries]
        readable = [completion for completion in completions if isinstance(completion, Completion)]
        self._load_prompts((completion.lane, completion.prompt) for completion in readable)
        for (raw_entry, fields), completion in zip(entries, completions, strict=True):
            entry = raw_entry.decode()
            try:
                if isinstance(completion, WireError):
                    raise completion
                prompt = self.prompt(completion.lane, completion.prompt)
                attempt = int(fields[b"t"]) + 1
            except (WireError, KeyError, ValueError) as error:
                reason = str(error)[:200] if isinstance(error, WireError) else f"queue entry: {type(error).__name__}"
                malformed.append({"entry": entry, "outcome": "malformed", "reason": reason, "body": b""})
            else:
                tried = {name.decode() for name in fields.get(b"w", b"").split()}
                works.append((Work(entry, completion, prompt, attempt), tried))
        return works, malformed

    def _completion(self, fields: dict[bytes, bytes]) -> Completion | WireError:
        try:
            completion = unpack(Completion, fields.get(b"p", b""), max_bytes=self.settings.max_item_bytes)
        except WireError as error:
            return error
        named = (fields.get(b"g", b""), fields.get(b"i", b""))
        if named != (completion.group_id.encode(), str(completion.idx).encode()):
            return WireError("Completion: not the one its queue entry names")
        return completion

    def _may_try(self, verifier: str, consumer: str, work: Work, tried: set[str]) -> bool:
        """Whether this consumer may judge the work now; if a consumer that has not tried it lives, it is requeued."""
        if consumer not in tried or not self._has_others(verifier, tried):
            return True
        self.requeue(verifier, [work])
        time.sleep(0.05)  # do not spin on one entry while the other consumer is busy
        return False

    def _has_others(self, verifier: str, tried: set[str]) -> bool:
        """Whether a living consumer has not tried yet; without one, those who have must try again."""
        queue = self._queue(verifier)
        consumers = self._retry(lambda: self._redis.xinfo_consumers(queue, GROUP), "listing the consumers")
        names = {c["name"].decode() for c in consumers} - tried
        alive = {heartbeat.id for heartbeat in self.services() if heartbeat.alive(self.settings.lease_seconds)}
        return bool(names & alive)

    def refresh(self, verifier: str, consumer: str, entries: Sequence[str]) -> None:
        """Reset the idle time of entries that are still being judged, so that no other consumer claims them."""
        for batch in chunks(entries):
            ids = list(batch)
            self._retry(
                lambda ids=ids: self._redis.xclaim(  # type: ignore[misc]
                    self._queue(verifier), GROUP, consumer, 0, ids, justid=True
                ),
                "refreshing work",
            )

    def judge(self, verifier: str, consumer: str, verdicts: Sequence[tuple[Work, Verdict]]) -> list[str]:
        """Record verdicts. Safe to repeat.

        Returns per verdict `done`, `duplicate`, `retry` (an error, tried again elsewhere) or `dead` (dead-lettered).
        """
        sizes = [len(work.completion.tokens) * 2 + len(work.completion.text) for work, _ in verdicts]
        calls = []
        for start, end in portions(sizes):
            records: list[dict[str, str | bytes]] = [
                {"entry": work.entry, "outcome": verdict.outcome, "reason": verdict.reason, "body": pack(verdict)}
                for work, verdict in verdicts[start:end]
            ]
            calls.append(self._verdicts(verifier, consumer, records))
        return [answer.decode() for reply in self._scripts.many("judge", calls) for answer in reply]

    def _verdicts(self, verifier: str, consumer: str, records: Sequence[Mapping[str, str | bytes]]) -> dict[str, Any]:
        """Arguments of judge.lua."""
        attempts = self.settings.verify_attempts
        return {"verifier": verifier, "consumer": consumer, "attempts": attempts, "verdicts": records}

    def requeue(self, verifier: str, works: Sequence[Work]) -> int:
        """Put work back unjudged: the next reader gets it at once, its attempts unchanged. Returns how much was."""
        entries = [work.entry for work in works]
        return int(self.script("requeue", verifier=verifier, entries=entries)) if entries else 0

    def leave(self, verifier: str, consumer: str) -> None:
        """Stop being a consumer of this queue, unless entries are still pending: those would be forgotten."""
        queue = self._queue(verifier)
        pending = self._retry(lambda: self._redis.xpending_range(queue, GROUP, "-", "+", 1, consumer), "leaving")
        if not cast(list[Any], pending):
            self._retry(lambda: self._redis.xgroup_delconsumer(queue, GROUP, consumer), "leaving")

    def _queue(self, verifier: str) -> str:
        return self._key(f"verify:{verifier}")

    # --- the verdict cache

    def known_verdicts(self, verifier: str, keys: Sequence[bytes]) -> list[Verdict | None]:
        """Verdicts stored under content hashes, by any run on this server; None where there is none. Counts hits."""
        found: list[Verdict | None] = []
        for batch in chunks(keys):
            for body in self._cache("cache_get", verifier=verifier, keys=batch):
                try:
                    found.append(unpack(Verdict, body) if body else None)
                except WireError:  # written by another release: judged again, and evicted in time because unused
                    found.append(None)
        return found

    def remember_verdicts(self, verdicts: Mapping[bytes, Verdict], max_bytes: int) -> int:
        """Store verdicts under content hashes, `pass` and `fail` only; at most `max_bytes` of Redis's memory in all.

        The least recently used are evicted. Returns how many.

        Raises:
            ValueError: an `error` among them: it is not a verdict on the answer.
            BrokerFull: Redis is at its memory limit. Nothing was stored; nothing else is affected.
        """
        if any(verdict.outcome == "error" for verdict in verdicts.values()):
            raise ValueError("an error is not a verdict on the answer: only pass and fail may be remembered")
        evicted = 0
        for batch in chunks(list(verdicts.items())):
            records = [{"key": key, "body": pack(verdict)} for key, verdict in batch]
            evicted += int(self._cache("cache_put", most_bytes=max_bytes, verdicts=records))
        return evicted
