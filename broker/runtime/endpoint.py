"""The address of a run's Redis: `broker.url` if set, else that of the private server, from <run>/broker.json (0600).

Services started by hand with the same CONFIG find the private server by that file.
"""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

import redis
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker.errors import BrokerUnavailable
from broker.plain_files import NotPlain, read_plain
from broker.queue.scripts import connect
from broker.settings import BrokerSettings, RunSettings

MOST_BYTES = 1 << 16
"""Of broker.json."""


class Endpoint(BaseModel):
    """Contents of broker.json: the address of the run's private server. `url` contains the password."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    url: str = Field(pattern=r"^(redis|unix)://", repr=False)
    host: str
    pid: int
    server: str
    """Program and version, for a human reader."""


def endpoint_path(run: RunSettings) -> Path:
    """<run>/broker.json."""
    return run.path / "broker.json"


def read_endpoint(run: RunSettings) -> Endpoint | None:
    """The contents of broker.json; None when there is none. Raises BrokerUnavailable when it cannot be read."""
    path = endpoint_path(run)
    try:
        return Endpoint.model_validate_json(read_plain(path, MOST_BYTES))
    except FileNotFoundError:
        return None
    except NotPlain as error:
        raise BrokerUnavailable(
            f"{path} {error.strerror}; remove it and start sieve broker CONFIG again", lasting=True
        ) from None
    except OSError as error:
        raise BrokerUnavailable(
            f"{path}: {error.strerror}; only the user who started the broker can read it", lasting=True
        ) from None
    except ValidationError as error:
        fields = ", ".join(str(one["loc"][0]) if one["loc"] else "the file" for one in error.errors())
        raise BrokerUnavailable(
            f"{path} is damaged ({fields}); remove it and start sieve broker CONFIG again"
        ) from None


def resolve_url(settings: BrokerSettings, run: RunSettings, url: str | None = None) -> str:
    """The url that a service connects to: `url`, else broker.url, else the private server's from broker.json.

    Raises BrokerUnavailable when there is none, or when it is private to another host.
    """
    if url is not None:
        return url
    if settings.url is not None:
        return settings.url.get_secret_value()
    endpoint = read_endpoint(run)
    if endpoint is None:
        raise BrokerUnavailable(
            f"no broker.url is set and {endpoint_path(run)} is not there; start sieve broker CONFIG (or sieve run "
            f"CONFIG) with the same CONFIG, or set broker.url"
        )
    if endpoint.host != socket.gethostname():
        raise BrokerUnavailable(
            f"the server in {endpoint_path(run)} is private to {endpoint.host}, this is {socket.gethostname()}; set "
            f"broker.url to a Redis that both reach",
            lasting=True,
        )
    return endpoint.url


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read (0600 from its first byte on); it appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def connect_once(url: str) -> redis.Redis:
    """A client for probing: short timeouts, no retries, replies as str."""
    return connect(url, socket_timeout=5.0, connect_timeout=2.0, decode=True)


def answers(url: str) -> bool:
    """Whether a server answers at `url` now."""
    with connect_once(url) as client:
        try:
            return bool(client.ping())
        except redis.exceptions.RedisError:
            return False
