"""The verdict cache as a verifier's queue uses it: which judgements are equal, when a look-up pays, what is kept.

Two judgements have the same key exactly when the same verifier is asked the same question about the same text: the key
covers the verifier's name, version, options, factory and fingerprint (of the tools it calls), the record and the
answer. The verdicts themselves are in Redis. A cache that is full, away or emptied costs time and changes no
verdict. `error` says nothing about an answer and `truncated` nothing about its text, so neither is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from broker.errors import BrokerFull
from broker.queue.client import Broker
from broker.queue.state import Work
from broker.queue.wire import Verdict
from verifier.protocol import COMMON_REASONS, Verifier
from verifier.settings import QueueSettings

_SCHEMA = "1"
WORTH_SECONDS = 0.003
"""Verdicts that take longer than this are looked up when the queue's settings do not say: a few round trips' time."""


class KnownVerdicts:
    """The verdict cache as one queue uses it."""

    def __init__(self, verifier: Verifier, settings: QueueSettings, max_bytes: int) -> None:
        self._name = verifier.name
        self._content = Content(verifier, settings.options, settings.factory)
        self._wanted = settings.cache if max_bytes else False
        self._max_bytes = max_bytes
        self._from_cache: set[str] = set()
        """Entries answered from the cache and not yet delivered: they need not be stored again."""

    def worthwhile(self, seconds: float | None) -> bool:
        """`seconds`: time of one verdict, None while unknown."""
        return self._wanted if self._wanted is not None else seconds is not None and seconds > WORTH_SECONDS

    def look_up(self, broker: Broker, works: Sequence[Work]) -> dict[str, Verdict]:
        """Entry → verdict of what is known, at no time spent."""
        asked = [work for work in works if work.completion.finish != "length"]
        keys = [self._content.key(work.prompt.record, work.completion.text) for work in asked]
        found = {
            work.entry: verdict.model_copy(update={"seconds": 0.0})
            for work, verdict in zip(asked, broker.known_verdicts(self._name, keys), strict=True)
            if verdict is not None
        }
        self._from_cache.update(found)
        return found

    def remember(self, broker: Broker, judged: Sequence[tuple[Work, Verdict]]) -> None:
        """Store what was judged here; a Redis at its memory limit keeps nothing, and that is all right."""
        fresh = {
            self._content.key(work.prompt.record, work.completion.text): verdict
            for work, verdict in judged
            if work.entry not in self._from_cache
            and verdict.outcome != "error"
            and verdict.reason not in COMMON_REASONS
        }
        self._from_cache.difference_update([work.entry for work, _ in judged])
        if fresh:
            try:
                broker.remember_verdicts(fresh, self._max_bytes)
            except BrokerFull:
                return  # the loop meets the same limit in its own calls and says so there


class Content:
    """Hashes for one verifier as it is set up here."""

    def __init__(self, verifier: Verifier, options: Mapping[str, Any], factory: str | None) -> None:
        """`verifier.fingerprint`, where it has one, names what else decides: versions of the tools that it calls."""
        fingerprint = str(getattr(verifier, "fingerprint", ""))
        self._asker = _bytes([_SCHEMA, verifier.name, verifier.version, fingerprint, factory or "", dict(options)])

    def key(self, record: Mapping[str, Any], answer: str) -> bytes:
        """32 bytes. A list counts like a tuple (the wire makes one the other); the order of fields does not count."""
        digest = hashlib.sha256()
        for part in (self._asker, _bytes(record), answer.encode("utf-8", "surrogatepass")):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.digest()


def _bytes(value: Any) -> bytes:
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    """`value` with everything JSON lacks spelled so that it cannot be mistaken for something else."""
    if isinstance(value, Mapping):
        # Marked and with typed keys: {1: x} is not {"1": x}, and no mapping looks like the bytes below.
        return {"m": sorted(([_plain(key), _plain(item)] for key, item in value.items()), key=json.dumps)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return {"b": value.hex()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return {"s": str(value)}
