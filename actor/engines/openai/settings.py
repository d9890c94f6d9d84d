"""The configuration section `actor.openai`: the servers, their key, and how weights reach them."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from broker.settings import Section


class OpenAISettings(Section):
    """vLLM servers that run elsewhere and are used through HTTP, one for each actor."""

    urls: tuple[str, ...] = ()
    """URLs such as `http://host:8000` or `https://…`, with or without `/v1`; actor --index i uses the i-th, alone."""
    model: str | None = None
    """The name under which the server serves the model; unset: the only model that it serves."""
    key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")] | None = None
    """The environment variable with the server's API key. The key itself is never part of a configuration."""
    weights: Path | None = None
    """The server's path of the directory of versions, if it differs from the actors' (`/mnt/run/weights`)."""
    outage_seconds: Annotated[float, Field(gt=0, le=86400)] = 120.0
    """How long the server may be away (restarting, unreachable) before the actor ends with exit code 69."""
    answer_seconds: Annotated[float, Field(gt=0, le=86400)] = 3600.0
    """How long one completion may take, including its time in the queue, before it is sampled again."""
    load_seconds: Annotated[float, Field(gt=0, le=86400)] = 1800.0
    """How long the server may take to load a version."""

    @field_validator("urls")
    @classmethod
    def _urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_base(url) for url in value)

    @model_validator(mode="after")
    def _sound(self) -> OpenAISettings:
        if len(set(self.urls)) < len(self.urls):
            raise ValueError(
                "actor.openai.urls names a server twice: two actors would change each other's weights; one actor can "
                "keep one server busy (actor.max_batch)"
            )
        for url in self.urls:
            if self.key_env and url.startswith("http://") and not _loopback(urlsplit(url).hostname or ""):
                raise ValueError(
                    f"actor.openai.key_env is set and {url} is neither https nor on this machine: the key would be "
                    "sent unencrypted; use https, or a tunnel that ends on 127.0.0.1"
                )
        return self


def _base(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"actor.openai.urls: {url[:200]!r} is not a URL ({error}); write http://host:port") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("actor.openai.urls: a URL with a password would be logged; use key_env instead")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise ValueError(
            f"actor.openai.urls: {url[:200]!r} is not the URL of a server; write http://host:port or https://host:port"
        )
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
