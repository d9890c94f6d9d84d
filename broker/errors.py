"""The exit codes of all processes, and the exceptions that carry them.

A message names the value that was seen, the limit it broke and the remedy, in one line, because it is what a person
reads on the terminal. Messages never contain a password (see `redact`). Numbers are those of sysexits.h where one
fits. Every package derives its own errors from `SieveError`.
"""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from broker.printable import one_line

EX_OK = 0
"""Done."""
EX_USAGE = 64
"""A wrong command line or setting: correct it; starting again changes nothing."""
EX_DATA = 65
"""Data that contradicts itself: files, a run of other settings, an account that does not add up."""
EX_UNAVAILABLE = 69
"""Something that is needed cannot be reached or is not installed."""
EX_INTERNAL = 70
"""A fault of sieve; the traceback is in the service's log."""
EX_CANNOT_CREATE = 73
"""A directory or file cannot be written."""
EX_TEMPORARY = 75
"""Temporary: the same command can succeed later."""
EX_MISMATCH = 76
"""Sampler and learner hold different weights, so training stopped; the message names the actor to end."""

_SECRET = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?P<user>[^:@/?#\s]*):\S*@", re.IGNORECASE)
"""Up to the last @ of the word: passwords are often written without percent-encoding what is special in a url."""
_TOKEN = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^:@/?#\s*]+@", re.IGNORECASE)
_QUERY_SECRET = re.compile(
    r"(?P<key>[?&;][\w.-]*(?:password|passwd|secret|token|api_?key|signature|credential)\w*=)[^&;\s'\"]*", re.IGNORECASE
)


def redact(text: str) -> str:
    """`text` with the secrets of every url in it, whatever its scheme, replaced by `***`: what stands before the host,
    except a user's name with a password after it, and arguments named like a password, token or key."""
    text = _SECRET.sub(r"\g<scheme>\g<user>:***@", text)
    return _QUERY_SECRET.sub(r"\g<key>***", _TOKEN.sub(r"\g<scheme>***@", text))


class SieveError(Exception):
    """An error meant for a person: str(error) is one line, `exit_code` is what the process ends with."""

    exit_code: ClassVar[int] = EX_INTERNAL

    def __init__(self, message: str) -> None:
        super().__init__(one_line(redact(message)))


class UsageError(SieveError):
    """A command that makes no sense with these settings."""

    exit_code = EX_USAGE


BrokerCause = Literal[
    "password",
    "permission",
    "refused",
    "host",
    "silent",
    "cut",
    "not_redis",
    "loading",
    "read_only",
    "disk",
    "memory",
    "unusable",
]
"""Why Redis cannot be used: it refuses the password, or a command to this user; nothing listens at the address; the
host has no address; it does not answer; it ends the connections; what answers is no Redis; it reads its data after a
start; it is a replica; its disk, or its memory, is full; anything else."""


class BrokerError(SieveError):
    """Base of all broker errors."""


class BrokerUnavailable(BrokerError):
    """Redis cannot be found, started, reached or used within its deadline.

    `lasting` says that waiting will not help (wrong password, too old a version): a service gives up at once.
    """

    exit_code = EX_UNAVAILABLE

    def __init__(self, message: str, *, lasting: bool = False, cause: BrokerCause = "unusable") -> None:
        super().__init__(message)
        self.lasting = lasting
        self.cause = cause


class BrokerFull(BrokerError):
    """Redis refuses writes: its memory (`cause` memory) or its disk (disk) is full. Nothing was lost, the same call can
    be repeated later."""

    exit_code = EX_TEMPORARY

    def __init__(self, message: str, *, cause: BrokerCause = "memory") -> None:
        super().__init__(message)
        self.cause = cause


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


class PortTaken(SieveError):
    """The address that should answer /metrics is in use."""

    exit_code = EX_UNAVAILABLE


class LogUnwritable(SieveError):
    """The run directory cannot be written."""

    exit_code = EX_CANNOT_CREATE


class WeightsError(SieveError):
    """Base of the errors about published weights."""


class WeightsMissing(WeightsError):
    """The version is not there (any more): take a newer one and try again."""

    exit_code = EX_TEMPORARY


class WeightsCorrupt(WeightsError):
    """A file of the version is not what its manifest says; the message names the file, the expected and the found."""

    exit_code = EX_DATA
