"""Settings of the openai engine: which server, how it is trusted, how weights reach it. Reads no key, opens nothing."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from broker.settings import Section


class OpenAISettings(Section):
    """vLLM servers that run elsewhere and are used through HTTP: one for each actor."""

    urls: tuple[str, ...] = ()
    """`http://host:8000` or `https://…`, a trailing `/v1` is welcome; actor --index i uses the i-th, alone."""
    model: str | None = None
    """The name under which the server serves the model; None: the only one it serves."""
    key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,99}$")] | None = None
    """The environment variable that holds the server's API key. The key itself never stands in a configuration."""
    weights: Path | None = None
    """Where the server sees the directory of versions, if under another path than the actors (`/mnt/run/weights`)."""
    outage_seconds: Annotated[float, Field(gt=0, le=86400)] = 120.0
    """How long the server may be away (restarting, unreachable) before the actor ends with exit code 69."""
    answer_seconds: Annotated[float, Field(gt=0, le=86400)] = 3600.0
    """How long one completion may take, waiting for its turn included, before it is sampled again."""
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
                    f"actor.openai.key_env is set and {url} is neither https nor on this machine: the key would travel "
                    f"in clear; use https, or a tunnel that ends on 127.0.0.1"
                )
        return self


def _base(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"actor.openai.urls: {url[:200]!r} is no url ({error}); write http://host:port") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("actor.openai.urls: a url with a password would be logged; name its variable in key_env")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.query or parts.fragment:
        raise ValueError(f"actor.openai.urls: {url[:200]!r} is no server; write http://host:port or https://host:port")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
