"""Runs the Lua scripts in `lua/`: one file per arrow of the state machine, each atomic and safe to repeat.

A call whose reply was lost is simply made again until its deadline. redis-py's own retries stay off, since they would
also repeat commands that are not safe (a plain XADD stores the entry twice).
"""

from __future__ import annotations

import errno
import random
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.retry import Retry

from broker.errors import BrokerCause, BrokerError, BrokerFull, BrokerUnavailable, Fenced, RunBusy, RunConflict, redact
from broker.queue.arguments import Argument, Signature, parse

T = TypeVar("T")

OLDEST_REDIS = (6, 2)
"""The oldest version with every command that the scripts and clients use (XAUTOCLAIM is the newest of them)."""

_TRANSIENT = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.TryAgainError,
)
_NO_WAY = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN)


def connect(url: str, *, socket_timeout: float, connect_timeout: float = 5.0, decode: bool = False) -> redis.Redis:
    """A client without hidden retries; it connects with the first command. `decode`: replies are str, not bytes."""
    return redis.Redis.from_url(
        url,
        socket_timeout=socket_timeout,
        socket_connect_timeout=connect_timeout,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        decode_responses=decode,
    )


@cache
def signature(name: str) -> Signature:
    """The arguments that a script declares."""
    return parse(name, _text(name))


@cache
def source(name: str) -> str:
    """What Redis runs: the shared prelude, locals for the declared arguments, and the script."""
    return _text("prelude") + signature(name).prologue + _text(name)


def _text(name: str) -> str:
    return (resources.files("broker.queue") / "lua" / f"{name}.lua").read_text(encoding="utf-8")


def repeat(action: Callable[[], T], *, deadline_seconds: float, what: str) -> T:
    """The result of `action`. Connection trouble is retried with jittered backoff until the deadline.

    Raises:
        BrokerUnavailable: still no connection at the deadline, or the server refuses the password.
        BrokerFull: Redis is at its memory limit. Nothing was written.
        Fenced, RunBusy, RunConflict: error replies of the scripts.
    """
    end = time.monotonic() + deadline_seconds
    pause = 0.02
    while True:
        try:
            return action()
        except redis.exceptions.AuthenticationError as error:
            raise BrokerUnavailable(
                f"Redis refuses the password while {what} ({error}); correct user and password in broker.url",
                lasting=True,
                cause="password",
            ) from None
        except redis.exceptions.InvalidResponse as error:
            raise BrokerUnavailable(
                f"what answers while {what} is no Redis ({redact(str(error))[:100]}); correct host and port in "
                "broker.url",
                cause="not_redis",
            ) from None
        except _TRANSIENT as error:
            if time.monotonic() + pause > end:
                cause = cause_of(error)
                raise BrokerUnavailable(
                    f"Redis did not answer for {deadline_seconds:g} s while {what} ({type(error).__name__}: "
                    f"{redact(str(error))[:200]}); {_REMEDY[cause]}",
                    cause=cause,
                ) from None
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(1.0, pause * 2)
        except redis.ResponseError as error:
            raise _translate(str(error), what) from None


_REMEDY: dict[BrokerCause, str] = {
    "refused": "start the Redis there, or correct host and port in broker.url",
    "host": "correct the host in broker.url, or the name service of this machine",
    "silent": "look whether its process is stopped or overloaded, and what the network drops on the way",
    "cut": "look at its log and its maxclients, and use rediss:// in broker.url if it demands TLS",
    "loading": "wait until it has read its data",
}


def cause_of(error: Exception) -> BrokerCause:
    """Why there was no answer, from the exception of redis-py and what it was raised from."""
    if isinstance(error, redis.exceptions.BusyLoadingError):
        return "loading"
    if isinstance(error, redis.TimeoutError):
        return "silent"
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, socket.gaierror):
            return "host"
        if isinstance(below, ConnectionRefusedError | FileNotFoundError):
            return "refused"
        if isinstance(below, TimeoutError) or (isinstance(below, OSError) and below.errno in _NO_WAY):
            return "silent"
        below = below.__cause__ or below.__context__
    return "cut"


def _translate(text: str, what: str) -> BrokerError:
    word, _, rest = text.partition(" ")
    if "OOM" in text or "maxmemory" in text:
        return BrokerFull(
            f"Redis is at its memory limit while {what}: nothing was lost and the call can be repeated; "
            "raise its maxmemory, or lower broker.max_queued_bytes",
            cause="memory",
        )
    if "MISCONF" in text or "No space left" in text:
        return BrokerFull(
            f"Redis cannot write to its disk while {what} ({text[:160]}); free space where it keeps its data",
            cause="disk",
        )
    if "READONLY" in text:
        return BrokerUnavailable(
            f"Redis refuses writes while {what}, since it is a replica; name its master in broker.url",
            cause="read_only",
        )
    if "NOAUTH" in text or "WRONGPASS" in text:
        return BrokerUnavailable(
            f"Redis refuses the password while {what} ({text[:120]}); correct user and password in broker.url",
            lasting=True,
            cause="password",
        )
    if "NOPERM" in text or "no permissions" in text:
        return BrokerUnavailable(
            f"Redis forbids this user a command while {what} ({text[:120]}); permit it with ACL SETUSER, or name "
            "another user in broker.url",
            lasting=True,
            cause="permission",
        )
    if word == "FENCED":
        return Fenced(f"a newer learner (epoch {rest}) has taken this run over; this one must end")
    if word == "BUSY":
        return RunBusy(f"a live learner ({rest}) already works on this run: stop it, or give this run another run.name")
    if word == "NOCHECKPOINT":
        return RunConflict(
            f"no committed checkpoint of step {rest} is kept: choose one of `sieve resume CONFIG --list`"
        )
    if word == "OLDER":
        return BrokerError(f"the published version contains {rest} steps, more than this one: {what} would go back")
    return BrokerError(f"Redis answered {text[:300]!r} while {what}")


class Scripts:
    """The scripts under one key prefix, over one connection pool."""

    def __init__(self, client: redis.Redis, prefix: str, deadline_seconds: float) -> None:
        self.client = client
        self.prefix = prefix
        self.deadline_seconds = deadline_seconds
        self._loaded: dict[str, Script] = {}
        self._digests: dict[str, str] = {}

    def __call__(self, script: str, /, **arguments: Argument) -> Any:
        """The reply of a script, called with the arguments that it declares.

        Raises:
            TypeError: other arguments than the declared ones; nothing is sent.
        """
        args = signature(script).pack(arguments)
        run = self._loaded.get(script)
        if run is None:
            run = self._loaded[script] = self.client.register_script(source(script))
        return self.retry(lambda: run(keys=[self.prefix], args=args), script)

    def many(self, script: str, calls: Sequence[Mapping[str, Argument]]) -> list[Any]:
        """The replies of a script to each of `calls`, made in order and in one round trip.

        Each call is atomic, all of them together are not: the server works on the first while the rest is on its way.
        After an error the earlier calls stay done, and repeating all of them must be safe.
        """
        packed = [signature(script).pack(call) for call in calls]
        replies: list[Any] = []

        def send() -> None:
            digest = self._digests.get(script)
            if digest is None:
                digest = self._digests[script] = self.client.script_load(source(script))
            pipeline = self.client.pipeline(transaction=False)
            for args in packed[len(replies) :]:
                pipeline.evalsha(digest, 1, self.prefix, *args)
            for reply in pipeline.execute(raise_on_error=False):
                if isinstance(reply, redis.exceptions.NoScriptError):
                    del self._digests[script]  # another server, or the same one started again
                    raise redis.ConnectionError("the server has forgotten the script")
                if isinstance(reply, Exception):
                    raise reply
                replies.append(reply)

        self.retry(send, script)
        return replies

    def retry(self, action: Callable[[], T], what: str) -> T:
        """The result of `action`, which must be safe to repeat; see `repeat`."""
        return repeat(action, deadline_seconds=self.deadline_seconds, what=what)
