"""The operator's side of the protocol: counts for the command line, the exporter and the launcher, and dead letters."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import redis

from broker.errors import BrokerCause
from broker.queue.connection import VERDICT_CACHE, RunConnection
from broker.queue.state import Audit, DeadLetter, Depths
from broker.queue.wire import Completion, Verdict, WireError, unpack


class AdminClient(RunConnection):
    """A connection that looks at the run from outside; `retry_dead` is the only method that changes it."""

    def depths(self) -> Depths:
        """What waits where, at this moment."""
        return Depths.model_validate(json.loads(self.script("depths")))

    def refuses_writes(self) -> tuple[BrokerCause, str] | None:
        """Why Redis, which answers, takes no writes now: the cause and a message with the remedy. None when it does.

        Asked by reading: a question never changes the run, and must work while nothing can be written.
        """
        info = self._retry(lambda: self._redis.info(), "asking Redis for its state")
        if info.get("role") == "slave" and int(info.get("slave_read_only", 1)):
            return "read_only", "Redis is a replica here and refuses writes; name its master in broker.url"
        limit = int(info.get("maxmemory", 0))
        used = int(info.get("used_memory", 0)) - int(info.get("mem_not_counted_for_evict", 0))
        if 0 < limit <= used and not str(info.get("maxmemory_policy", "")).startswith("allkeys"):
            return "memory", (
                f"Redis holds {used / 1e6:,.1f} MB, its maxmemory is {limit / 1e6:,.1f} MB, and it refuses writes; "
                "raise maxmemory (CONFIG SET maxmemory), or lower broker.max_queued_bytes"
            )
        failed = info.get("aof_last_write_status") == "err" and int(info.get("aof_enabled", 0))
        if failed or (info.get("rdb_last_bgsave_status") == "err" and self._stops_on_failed_save()):
            return "disk", (
                f"Redis could not write its {'AOF' if failed else 'snapshot'} to its disk and refuses writes; "
                "free space where it keeps its data, it then goes on by itself"
            )
        return None

    def _stops_on_failed_save(self) -> bool:
        """Whether Redis refuses writes after a failed snapshot; assumed where CONFIG is not permitted."""
        try:
            wanted = ("stop-writes-on-bgsave-error", "save")
            stops, points = (self._redis.config_get(name).get(name, "") for name in wanted)
        except redis.ResponseError:
            return True
        return stops == "yes" and bool(points)

    def audit(self) -> Audit:
        """Account for every issued group and every completion."""
        return Audit.model_validate(json.loads(self.script("audit")))

    def committed_numbers(self) -> list[int]:
        """Numbers of the committed groups, in order of issue."""
        raw = self._retry(lambda: self._redis.get(self._key("done")), "reading the tombstones")
        marks = np.unpackbits(np.frombuffer(cast(bytes, raw) or b"", np.uint8))
        return np.flatnonzero(marks).tolist()

    def cache_counts(self) -> dict[str, int]:
        """Counts of the verdict cache over all runs on this server: `bytes`, `hits:<verifier>`, `misses:<verifier>`."""
        raw = self._retry(lambda: self._redis.hgetall(f"{VERDICT_CACHE}:counts"), "reading the verdict cache")
        return {name.decode(): int(count) for name, count in cast(dict[bytes, bytes], raw).items()}

    def dead_letters(self, count: int = 100) -> list[DeadLetter]:
        """The `count` newest dead letters, newest first."""
        raw = self._retry(lambda: self._redis.xrevrange(self._key("dead"), count=count), "reading dead letters")
        return [_letter(entry, fields) for entry, fields in cast(Iterable[tuple[bytes, dict[bytes, bytes]]], raw)]

    def retry_dead(self, entry: str) -> str:
        """Put a dead letter back into its verifier's queue with all its attempts before it. Safe to repeat.

        Returns `retried`; `gone` (no such letter, or retried already); `closed` (too late: its group is trained, read
        or ended); `unreadable` (what is stored is not a completion, so no verifier could ever judge it).
        """
        if not re.fullmatch(r"[0-9]{1,20}-[0-9]{1,20}", entry):
            return "gone"
        raw = self._retry(lambda: self._redis.xrange(self._key("dead"), entry, entry), "reading a dead letter")
        if not raw:
            return "gone"
        try:
            completion = unpack(Completion, cast(Any, raw)[0][1].get(b"p", b""), max_bytes=self.settings.max_item_bytes)
        except WireError:
            return "unreadable"
        return str(self.script("retry_dead", entry=entry, oldest=completion.oldest).decode())


def _letter(entry: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    def text(name: bytes) -> str:
        return fields.get(name, b"").decode("utf-8", "replace")

    body = fields.get(b"verdict")
    return DeadLetter(
        entry=entry.decode(),
        group_id=text(b"g"),
        idx=text(b"i"),
        verifier=text(b"verifier"),
        reason=text(b"reason"),
        verdict=unpack(Verdict, body) if body else None,
        history=tuple(text(b"h").splitlines()),
        payload_bytes=len(fields.get(b"p", b"")),
    )
