"""Bringing a version's files here, verified and checked, while sampling goes on. Loads nothing; knows no engine.

One version at a time, on one thread. What has begun is finished before another version is fetched: versions published
faster than they can be fetched still arrive, each a little late, instead of never. A version that cannot be had is
asked for again after a pause that grows; every failure is reported, and nothing unverified ever gets out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from broker.errors import SieveError
from broker.weights.store import Fetched

PAUSE_SECONDS = (0.1, 5.0)
"""First and longest pause after a failure: a version that is just being published is there soon; a corrupt one is not
repaired faster by asking often."""


class Fetching:
    """`bring(version)` returns a version fit for loading or raises SieveError; it runs on this object's thread."""

    def __init__(self, bring: Callable[[int], Fetched]) -> None:
        self._bring = bring
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._begun: tuple[int, Future[Fetched]] | None = None
        self._failed: int | None = None
        self._pause, self._not_before = PAUSE_SECONDS[0], 0.0

    @property
    def failing(self) -> bool:
        """Whether the version wanted last could not be had and is waited for."""
        return self._failed is not None

    @property
    def under_way(self) -> int | None:
        """The version whose files are being read: best not deleted now."""
        return None if self._begun is None else self._begun[0]

    def get(self, version: int) -> Fetched | None:
        """`version`, or the one that was wanted when its fetch began; None while that goes on.

        The same answer again until `taken` or another version is wanted. Raises the error of each failed try once."""
        if self._failed not in (None, version):
            self._failed, self._not_before, self._pause = None, 0.0, PAUSE_SECONDS[0]
        if self._begun is None:
            if time.monotonic() >= self._not_before:
                self._begun = version, self._pool.submit(self._bring, version)
            return None
        begun, future = self._begun
        if not future.done():
            return None
        try:
            return future.result()
        except SieveError:
            self.reject(begun)
            raise

    def taken(self) -> None:
        """What `get` gave is loaded, or not wanted any more."""
        self._begun, self._failed = None, None
        self._pause, self._not_before = PAUSE_SECONDS[0], 0.0

    def reject(self, version: int) -> None:
        """`version` is of no use as it is: it is fetched again only after a pause, any other at once."""
        self._begun, self._failed = None, version
        self._not_before = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, PAUSE_SECONDS[1])

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
