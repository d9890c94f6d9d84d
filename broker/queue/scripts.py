"""Runs the Lua scripts in `lua/`: one file per arrow of the state machine, each atomic and safe to repeat.

Because they are safe to repeat, a call whose reply was lost is simply made again until its deadline: redis-py's own
retries stay off, since they would also repeat commands that are not safe (a plain XADD stores the entry twice).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.retry import Retry

from broker.errors import BrokerError, BrokerFull, BrokerUnavailable, Fenced, RunBusy, RunConflict, redact

T = TypeVar("T")

_TRANSIENT = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.TryAgainError,
)


def connect(url: str, *, socket_timeout: float) -> redis.Redis:
    """A client without hidden retries; it connects with the first command."""
    return redis.Redis.from_url(
        url,
        socket_timeout=socket_timeout,
        socket_connect_timeout=5.0,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
    )


@cache
def source(name: str) -> str:
    """The text of a script, its shared prelude first."""
    folder = resources.files("broker.queue") / "lua"
    return (folder / "prelude.lua").read_text() + (folder / f"{name}.lua").read_text()


def repeat(action: Callable[[], T], *, deadline_seconds: float, what: str) -> T:
    """Do `action` until it succeeds. Connection trouble is retried with jittered backoff until the deadline.

    Raises:
        BrokerUnavailable: still no connection at the deadline, or the server refuses us (wrong password).
        BrokerFull: Redis is at its memory limit. Nothing was written.
        Fenced, RunBusy, RunConflict: what the scripts answer.
    """
    end = time.monotonic() + deadline_seconds
    pause = 0.02
    while True:
        try:
            return action()
        except redis.exceptions.AuthenticationError as error:
            raise BrokerUnavailable(
                f"Redis refuses the password while {what} ({error}): check broker.url", lasting=True
            ) from None
        except _TRANSIENT as error:
            if time.monotonic() + pause > end:
                raise BrokerUnavailable(
                    f"Redis did not answer for {deadline_seconds:g} s while {what} ({type(error).__name__}: "
                    f"{redact(str(error))[:200]}): is the server running, and broker.url right?"
                ) from None
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(1.0, pause * 2)
        except redis.ResponseError as error:
            raise _translate(str(error), what) from None


def _translate(text: str, what: str) -> BrokerError:
    word, _, rest = text.partition(" ")
    if "OOM" in text or "maxmemory" in text:
        return BrokerFull(
            f"Redis is at its memory limit while {what}: nothing was lost and the call can be repeated; "
            "raise its maxmemory, or lower broker.max_queued_bytes"
        )
    if "MISCONF" in text or "No space left" in text:
        return BrokerFull(
            f"Redis cannot write to its disk while {what} ({text[:160]}): free space where it keeps its AOF"
        )
    if "NOAUTH" in text or "WRONGPASS" in text or "NOPERM" in text:
        return BrokerUnavailable(
            f"Redis refuses us while {what} ({text[:120]}): check the password in broker.url", lasting=True
        )
    if word == "FENCED":
        return Fenced(f"a newer learner (epoch {rest}) has taken this run; this one must end")
    if word == "BUSY":
        return RunBusy(f"a live learner ({rest}) already works on this run: stop it, or give this run another run.name")
    if word == "BEHIND":
        return RunConflict(
            f"the newest checkpoint is older than step {rest}, which is already committed: restore the checkpoint, "
            f"or start "
            "a run with another run.name"
        )
    return BrokerError(f"Redis answered {text[:300]!r} while {what}")


class Scripts:
    """The scripts of one run over one connection pool."""

    def __init__(self, client: redis.Redis, prefix: str, deadline_seconds: float) -> None:
        self.client = client
        self.prefix = prefix
        self.deadline_seconds = deadline_seconds
        self._loaded: dict[str, Script] = {}
        self._digests: dict[str, str] = {}

    def __call__(self, name: str, *args: str | bytes | int | float) -> Any:
        """Run the script `name`; every argument becomes one ARGV entry."""
        script = self._loaded.get(name)
        if script is None:
            script = self._loaded[name] = self.client.register_script(source(name))
        return self.retry(lambda: script(keys=[self.prefix], args=list(args)), name)

    def many(self, name: str, calls: Sequence[Sequence[str | bytes | int | float]]) -> list[Any]:
        """Run the script once for each of `calls`, in order and in one round trip; the replies in the same order.

        Each call is atomic, all of them together are not: the server works on the first while the rest is on its way.
        After an error the earlier calls stay done, and repeating all of them must be safe.
        """
        replies: list[Any] = []

        def send() -> None:
            digest = self._digests.get(name)
            if digest is None:
                digest = self._digests[name] = self.client.script_load(source(name))
            pipeline = self.client.pipeline(transaction=False)
            for args in calls[len(replies) :]:
                pipeline.evalsha(digest, 1, self.prefix, *args)
            for reply in pipeline.execute(raise_on_error=False):
                if isinstance(reply, redis.exceptions.NoScriptError):
                    del self._digests[name]  # another server, or the same one started again
                    raise redis.ConnectionError("the server has forgotten the script")
                if isinstance(reply, Exception):
                    raise reply
                replies.append(reply)

        self.retry(send, name)
        return replies

    def retry(self, action: Callable[[], T], what: str) -> T:
        """`action` must be safe to repeat."""
        return repeat(action, deadline_seconds=self.deadline_seconds, what=what)
