"""The verdict cache of one verifier's queue: how its keys are computed, when it is consulted and what it stores.

Two judgements share a key exactly when the same verifier judges the same answer against the same record: the key covers
the verifier's name, version, options, factory and fingerprint (of the tools it calls), the record and the answer. The
verdicts are stored in Redis. A cache that is full, unreachable or emptied costs time but changes no verdict. `error` is
not stored because it says nothing about the answer, `truncated` because it says nothing about the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from broker.errors import BrokerFull
from broker.queue.state import Work
from broker.queue.verifier_client import VerifierClient
from broker.queue.wire import Verdict
from verifier.protocol import COMMON_REASONS, Verifier
from verifier.settings import QueueSettings

_SCHEMA = "1"
WORTH_SECONDS = 0.003
"""If the queue's `cache` setting is unset, verdicts that take longer than this are cached: about a few round trips to
Redis."""


class VerdictCache:
    """Cached verdicts for one queue; not thread-safe."""

    def __init__(self, verifier: Verifier, settings: QueueSettings, max_bytes: int) -> None:
        self._name = verifier.name
        self._key = JudgementKey(verifier, settings.options, settings.factory)
        self._wanted = settings.cache if max_bytes else False
        self._max_bytes = max_bytes
        self._from_cache: set[str] = set()
        """Stream entries answered from the cache and not yet delivered; their verdicts are not stored again."""

    def worthwhile(self, seconds: float | None) -> bool:
        """Whether to use the cache; `seconds` is the average time of one verdict, None while unknown."""
        return self._wanted if self._wanted is not None else seconds is not None and seconds > WORTH_SECONDS

    def look_up(self, broker: VerifierClient, works: Sequence[Work]) -> dict[str, Verdict]:
        """The cached verdicts by stream entry, with `seconds` set to 0."""
        asked = [work for work in works if work.completion.finish != "length"]
        keys = [self._key.digest(work.prompt.record, work.completion.text) for work in asked]
        found = {
            work.entry: verdict.model_copy(update={"seconds": 0.0})
            for work, verdict in zip(asked, broker.known_verdicts(self._name, keys), strict=True)
            if verdict is not None
        }
        self._from_cache.update(found)
        return found

    def remember(self, broker: VerifierClient, judged: Sequence[tuple[Work, Verdict]]) -> None:
        """Store the verdicts that were computed here; nothing is stored while Redis is at its memory limit."""
        fresh = {
            self._key.digest(work.prompt.record, work.completion.text): verdict
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
                return  # the service's loop meets the same limit in its own calls and reports it there


class JudgementKey:
    """Computes cache keys for one verifier as it is configured here."""

    def __init__(self, verifier: Verifier, options: Mapping[str, Any], factory: str | None) -> None:
        """`verifier.fingerprint`, an optional attribute, names the versions of the tools that the verifier calls."""
        fingerprint = str(getattr(verifier, "fingerprint", ""))
        self._prefix = _bytes([_SCHEMA, verifier.name, verifier.version, fingerprint, factory or "", dict(options)])

    def digest(self, record: Mapping[str, Any], answer: str) -> bytes:
        """The SHA-256 key (32 bytes) of one judgement.

        Lists and tuples are equal (the wire turns one into the other); the order of a mapping's keys is irrelevant.
        """
        digest = hashlib.sha256()
        for part in (self._prefix, _bytes(record), answer.encode("utf-8", "surrogatepass")):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.digest()


def _bytes(value: Any) -> bytes:
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    """`value` as JSON, with everything that JSON lacks written so that no two different values collide."""
    if isinstance(value, Mapping):
        # Tagged, and keys keep their types: {1: x} differs from {"1": x}, and no mapping equals the bytes below.
        return {"m": sorted(([_plain(key), _plain(item)] for key, item in value.items()), key=json.dumps)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return {"b": value.hex()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return {"s": str(value)}
