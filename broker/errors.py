"""Everything that can go wrong between a service and the broker, as exceptions that carry the exit code of a command.

A message names the value that was seen, the limit it broke and the remedy, in one line, because it is what a person reads
on the terminal. Messages never contain a password (see `redact`). Exit codes follow sysexits.h: 65 the data contradicts
itself, 69 a service is unavailable, 70 our own fault, 75 try again later.
"""

from __future__ import annotations

import re
from typing import ClassVar

EX_OK = 0
EX_USAGE = 64
EX_DATA = 65
EX_UNAVAILABLE = 69
EX_INTERNAL = 70
EX_TEMPORARY = 75

_SECRET = re.compile(r"(?P<scheme>\b(?:rediss?|unix)://)(?P<user>[^:@/\s]*):(?P<secret>[^@\s]*)@")


def redact(text: str) -> str:
    """`text` with the password of every Redis url in it replaced by `***`."""
    return _SECRET.sub(r"\g<scheme>\g<user>:***@", text)


class BrokerError(Exception):
    """Base of all broker errors: str(error) is one line, `exit_code` is what the process ends with."""

    exit_code: ClassVar[int] = EX_INTERNAL

    def __init__(self, message: str) -> None:
        super().__init__(redact(" ".join(message.split())))


class BrokerUnavailable(BrokerError):
    """Redis cannot be found, started, reached or used (wrong version, wrong password) within its deadline."""

    exit_code = EX_UNAVAILABLE


class BrokerFull(BrokerError):
    """Redis is at its memory limit and refuses writes; nothing was lost, the same call can be repeated later."""

    exit_code = EX_TEMPORARY


class Fenced(BrokerError):
    """Another service has taken this one's place; what it still holds is no longer its own and it must end."""

    exit_code = EX_TEMPORARY


class RunBusy(BrokerError):
    """A live learner already works on this run."""

    exit_code = EX_TEMPORARY


class RunConflict(BrokerError):
    """The run of this name in Redis was opened with other settings or other data."""

    exit_code = EX_DATA


class RunUnknown(BrokerError):
    """No run of this name is in Redis (yet)."""

    exit_code = EX_TEMPORARY
