"""Fetching and checking versions on a thread while sampling goes on. Loads nothing; knows no engine.

One version is fetched at a time, and a fetch that has begun is finished before another version is fetched: versions
published faster than they can be fetched still arrive, each a little late. A version that cannot be fetched is tried
again after a growing pause. Every failure is raised once, and only verified versions are returned.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from broker.errors import SieveError
from broker.weights.store import Fetched

PAUSE_SECONDS = (0.1, 5.0)
"""First and longest pause after a failure: a version that is just being published is there soon, and frequent tries
do not repair a corrupt one."""


class WeightsFetcher:
    """Calls `fetch(version)`, which returns a version ready for loading or raises SieveError, on its own thread."""

    def __init__(self, fetch: Callable[[int], Fetched]) -> None:
        self._fetch = fetch
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._begun: tuple[int, Future[Fetched]] | None = None
        self._failed: int | None = None
        self._pause, self._not_before = PAUSE_SECONDS[0], 0.0

    @property
    def failing(self) -> bool:
        """Whether the last try failed, so that the version is being waited for."""
        return self._failed is not None

    @property
    def in_progress(self) -> int | None:
        """The version whose files are being read, which should not be deleted now."""
        return None if self._begun is None else self._begun[0]

    def get(self, version: int) -> Fetched | None:
        """`version`, or the one whose fetch had begun before; None while it is being fetched.

        Returns the same version again until `taken` is called. Raises the error of each failed try once.
        """
        if self._failed not in (None, version):
            self._failed, self._not_before, self._pause = None, 0.0, PAUSE_SECONDS[0]
        if self._begun is None:
            if time.monotonic() >= self._not_before:
                self._begun = version, self._pool.submit(self._fetch, version)
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
        """The version that `get` returned has been loaded, or is not wanted any more."""
        self._begun, self._failed = None, None
        self._pause, self._not_before = PAUSE_SECONDS[0], 0.0

    def reject(self, version: int) -> None:
        """`version` cannot be used as it is: it is fetched again only after a pause, any other version at once."""
        self._begun, self._failed = None, version
        self._not_before = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, PAUSE_SECONDS[1])

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
