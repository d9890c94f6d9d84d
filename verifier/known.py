"""Verdicts that need not be given again: when looking them up pays, and what may be remembered.

A convenience, never a condition: a cache that is full, away or emptied costs time and changes no verdict. `error` says
nothing about an answer and `truncated` nothing about its text, so neither is remembered. Holds no verdicts itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker.errors import BrokerFull
from broker.queue.client import Broker
from broker.queue.state import Work
from broker.queue.wire import Verdict
from verifier.content import Content
from verifier.settings import QueueSettings
from verifier.verdicts import COMMON_REASONS, Verifier

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
