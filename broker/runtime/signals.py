"""SIGTERM and SIGINT of a service: the first asks it to stop, a second one or the end of the grace period ends it."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_signals(
    stop: Callable[[str], None], force: Callable[[str], None], grace_seconds: Callable[[], float]
) -> Iterator[None]:
    """Context in which the first signal calls `stop`, and a second one or the end of the grace period calls `force`,
    each with the reason; both in a thread of their own.

    Does nothing outside the main thread. The handler only writes to a pipe: setting an Event inside a signal handler
    can deadlock against the wait it interrupts.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    previous = {
        number: signal.signal(number, lambda signum, _: os.write(writing, bytes([signum])) and None)
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    watcher = threading.Thread(target=_watch, args=(reading, stop, force, grace_seconds), name="signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        os.write(writing, b"\0")
        watcher.join()
        os.close(reading)
        os.close(writing)


def _watch(
    reading: int, stop: Callable[[str], None], force: Callable[[str], None], grace_seconds: Callable[[], float]
) -> None:
    first = os.read(reading, 1)
    if first == b"\0":
        return
    seconds = grace_seconds()
    stop(f"{signal.Signals(first[0]).name}, {seconds:g} s to drain")
    ready, _, _ = select.select([reading], [], [], seconds)
    if ready and os.read(reading, 1) == b"\0":
        return
    force("second signal" if ready else f"not drained within {seconds:g} s")
