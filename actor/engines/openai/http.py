"""JSON over HTTP with one server, with deadlines, bounded bodies, and a key that appears in no message.

A request fails in one of two ways. `Trouble`: there was no answer, or the server failed; the same request may succeed
later. `ServerRefused`: the server understood the request and refused it; repeating it will not help.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import TimeoutError as TooLate
from typing import Any, ClassVar, TypeVar

import aiohttp

from actor.engine import EngineError
from broker.errors import EX_UNAVAILABLE, EX_USAGE

CONNECT_SECONDS = 10.0
DETAIL = 300
"""The most characters of a server's own text in a message."""
REFUSAL_BYTES = 1 << 16
"""The most bytes read of an error's body."""
LATER = frozenset({408, 425, 429})
"""Statuses below 500 that do not concern the request itself: it may succeed later."""

T = TypeVar("T")


class ServerRefused(EngineError):
    """The server refused the request: a wrong key, model, path or flag."""

    exit_code: ClassVar[int] = EX_USAGE

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ServerUnavailable(EngineError):
    """The server has been away for longer than actor.openai.outage_seconds."""

    exit_code: ClassVar[int] = EX_UNAVAILABLE


class Trouble(Exception):
    """No answer, or a failure of the server: the request may be repeated. `status` 0: no answer at all."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


def key_of(variable: str | None) -> str | None:
    """The API key in the environment variable `variable`. Raises ServerRefused if it is not set or cannot be sent."""
    if variable is None:
        return None
    key = os.environ.get(variable, "")
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        state = "not set" if not key else "not a valid key (it has blanks or characters beyond ASCII)"
        raise ServerRefused(f"actor.openai.key_env = {variable}, but that variable is {state}; set it for every actor")
    return key


class Http:
    """The connections to one server, on an event loop in its own thread."""

    def __init__(self, url: str, key: str | None, connections: int) -> None:
        self.url = url
        self._key = key
        self.heard = time.monotonic()
        """When the server last answered a request with success (monotonic seconds)."""
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="openai", daemon=True)
        self._thread.start()
        self._session: aiohttp.ClientSession = self.wait(self._open(connections), CONNECT_SECONDS, "the HTTP client")

    def wait(self, work: Coroutine[Any, Any, T], seconds: float, what: str) -> T:
        """The result of `work`, run on the loop. Raises EngineError naming `what` after `seconds`."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(seconds)
        except TooLate:
            future.cancel()
            raise EngineError(f"waited {seconds:g} s for {what} at {self.url}; restart the actor") from None

    async def ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, seconds: float, most: int = REFUSAL_BYTES
    ) -> bytes:
        """The body of a 2xx answer, at most `most` bytes, within `seconds`. Raises Trouble and ServerRefused."""
        where = f"{method} {self.url}{path.partition('?')[0]}"
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS)
        try:
            async with self._session.request(
                method, self.url + path, json=body, timeout=timeout, allow_redirects=False
            ) as response:
                status = response.status
                good = 200 <= status < 300
                data = await _body(response, most if good else REFUSAL_BYTES)
        except aiohttp.ClientSSLError as error:
            raise ServerRefused(
                f"{where}: no trusted connection ({self._safe(str(error))}); install the server's certificate "
                "authority on this machine (SSL_CERT_FILE)"
            ) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Trouble(f"{where}: {type(error).__name__} {self._safe(str(error))}".rstrip()) from None
        if status >= 500 or status in LATER:
            raise Trouble(f"{where}: status {status} {self._safe(data.decode(errors='replace'))}", status)
        if not good:
            raise ServerRefused(f"{where}: status {status} {self._safe(data.decode(errors='replace'))}", status)
        if len(data) > most:
            raise ServerRefused(f"{where}: answers with more than {most} bytes; check that it is a vLLM 0.32 server")
        self.heard = time.monotonic()
        return data

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        try:
            self.wait(self._shut(), CONNECT_SECONDS, "the connections to end")
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(CONNECT_SECONDS)
            self.loop.close()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    async def _open(self, connections: int) -> aiohttp.ClientSession:
        headers = {"Accept-Encoding": "identity"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        return aiohttp.ClientSession(
            headers=headers, connector=aiohttp.TCPConnector(limit=connections), auto_decompress=False, trust_env=False
        )

    async def _shut(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._session.close()

    def _safe(self, text: str) -> str:
        """The text of a server or library, shortened and without the key (a server may echo what it was sent)."""
        if self._key is not None:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:DETAIL]


async def _body(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body, cut off after `most` + 1 bytes: the one byte too many shows that there were more."""
    data = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        data += chunk
        if len(data) > most:
            break
    return bytes(data[: most + 1])
