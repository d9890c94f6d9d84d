"""One vLLM server: the model that it serves, whose weights it has, and the loading of new ones.

Weights change while the server keeps its requests: pause → load → stamp → resume. The stamp names this actor and the
version. A server takes one actor, since two would overwrite each other's weights. The first weights are loaded only
after a claim: a living owner looks at the stamp every second, sees the claim and ends, and one in the middle of an
update replaces the claim with its own stamp.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from actor.engine import EngineError, WeightsUnusable
from actor.engines.openai import wire
from actor.engines.openai.http import Http, ServerRefused, ServerUnavailable, Trouble, key_of
from actor.engines.openai.settings import OpenAISettings
from broker.errors import EX_USAGE

LOOK_SECONDS = 1.0
"""Interval between looks at the server's stamp. A claim must stay in place for twice this to count."""
CONTROL_SECONDS = 60.0
"""Deadline of stamping, resuming and pausing; a pause waits for one step of everything that runs."""
PAUSED_SECONDS = 60.0
"""How long a claim waits for a paused server, which is in the middle of an update unless the updating actor died."""
_STAMP = re.compile(r"sieve-([0-9a-f]{8})-([0-9]{1,12}|claim)")


def is_stamp(text: str) -> bool:
    """Whether `text` is a stamp of an actor, this one or another."""
    return _STAMP.fullmatch(text) is not None


class ServerShared(EngineError):
    """Another actor loads weights into this server."""

    exit_code: ClassVar[int] = EX_USAGE


class ServerFixed(EngineError):
    """The server cannot load weights other than those it was started with."""

    exit_code: ClassVar[int] = EX_USAGE


class ServerAway(WeightsUnusable):
    """The server did not answer while weights were loaded; the load may be repeated."""


@dataclass(frozen=True)
class Sight:
    """The result of the last look at the server."""

    at: float
    """When the look began (monotonic seconds)."""
    stamp: str | None
    """The stamp of its weights; None before the first look, and from a server whose weights are fixed."""
    refusal: EngineError | None = None
    """An answer after which the engine must end."""


class Server:
    """A connection to the server at `url`, waiting up to actor.openai.outage_seconds for its first answer.

    Raises ServerRefused, ServerUnavailable and AnswerUnusable if the server cannot be used.
    """

    def __init__(self, settings: OpenAISettings, url: str, connections: int) -> None:
        self._settings = settings
        self._id = secrets.token_hex(4)
        self._quiet = asyncio.Lock()
        """Held while the stamp changes, so that no look reads an old one."""
        self.sight = Sight(float("-inf"), None)
        self.http = Http(url, key_of(settings.key_env), connections)
        try:
            self._reach()
        except BaseException:
            self.http.close()
            raise
        asyncio.run_coroutine_threadsafe(self._watch(), self.http.loop)

    def close(self) -> None:
        """End the connections."""
        self.http.close()

    def check_outage(self, error: object) -> None:
        """Raise ServerUnavailable once the server has been away for too long; `error` is the last trouble."""
        away = time.monotonic() - self.http.heard
        if away > self._settings.outage_seconds:
            raise ServerUnavailable(
                f"no answer for {away:.0f} s, outage_seconds is {self._settings.outage_seconds:g} ({error}); restart "
                f"the server or raise the limit"
            )

    # ------------------------------------------------------------------ stamps

    def stamp(self, what: int | str) -> str:
        """The stamp under which this actor loads version `what`."""
        return f"sieve-{self._id}-{what}"

    def version_of(self, stamp: str) -> int | None:
        """The version that a stamp of this actor names; None for any other stamp."""
        found = _STAMP.fullmatch(stamp)
        return int(found[2]) if found and found[1] == self._id and found[2] != "claim" else None

    def check_owner(self, stamp: str) -> None:
        """Raise ServerShared if `stamp` is another actor's."""
        found = _STAMP.fullmatch(stamp)
        if found and found[1] != self._id:
            raise ServerShared(
                f"the weights at {self.http.url} are loaded by another actor ({stamp}); one server takes one actor: "
                f"end one of the two, or give actor.openai.urls a server for each"
            )

    # ------------------------------------------------------------------ weights

    def load(self, version: int, directory: Path, *, loaded: int | None, previous: Path | None) -> dict[str, float]:
        """Load the files of `version`, stamp them and resume; returns the seconds of "load" and "pause".

        `loaded`: the version that the server is known to have, `previous`: the directory loaded last, which is loaded
        again if the server refuses this one. Raises WeightsUnusable for refused files (ServerRefused if there is no
        previous directory), ServerShared, and ServerAway or ServerUnavailable after which the server's weights are
        unknown.
        """
        try:
            self.http.wait(self._quiet.acquire(), CONTROL_SECONDS + LOOK_SECONDS, "a look at the server to end")
            try:
                self._claim(loaded)
                begin = time.monotonic()
                self._ask("POST", "/pause?mode=keep&clear_cache=true")
                loading = time.monotonic()
                try:
                    self._reload(directory)
                except Trouble as error:
                    if not error.status:
                        raise
                    self._ask("GET", "/health")  # raises Trouble if the engine died: then the files are not to blame
                    self._restore(version, directory, error, loaded, previous)
                done = time.monotonic()
                self._ask("POST", "/update_weight_version", {"new_version": self.stamp(version)})
                self.sight = Sight(time.monotonic(), self.stamp(version))
                self._ask("POST", "/resume")
                return {"load": done - loading, "pause": time.monotonic() - begin}
            finally:
                self.http.loop.call_soon_threadsafe(self._quiet.release)
        except Trouble as error:
            self.check_outage(error)
            raise ServerAway(f"version {version} was not loaded: {error}") from None
        except WeightsUnusable as error:
            if previous is None:
                raise ServerRefused(str(error)) from None
            raise

    def _reload(self, directory: Path) -> None:
        path = str(self._settings.weights / directory.name if self._settings.weights else directory.resolve())
        call = {"method": "reload_weights", "kwargs": {"weights_path": path}}
        self._ask("POST", "/collective_rpc", call, seconds=self._settings.load_seconds)

    def _restore(
        self, version: int, directory: Path, error: Trouble, loaded: int | None, previous: Path | None
    ) -> None:
        """Let a server that could not load `directory` load `previous` again, and raise WeightsUnusable."""
        state = "it stays paused"
        if previous is not None and loaded is not None:
            try:
                self._reload(previous)
                self._ask("POST", "/resume")
                state = f"version {loaded} is loaded again"
            except Trouble as second:
                if not second.status:
                    raise
                raise EngineError(
                    f"the server could load neither version {version} ({error}) nor again {previous} ({second}); it "
                    f"stays paused: restart it, then the actor"
                ) from None
        raise WeightsUnusable(
            f"the server could not load version {version}: {error}; {state}. It must see the directory "
            f"{self._settings.weights or directory.resolve().parent}: mount it there, or set actor.openai.weights to "
            f"where it does"
        )

    def _claim(self, loaded: int | None) -> None:
        """Make sure that no other actor uses the server. Raises ServerShared."""
        if loaded is not None:
            self.check_owner(self._read_stamp())
            return
        self._ask("POST", "/update_weight_version", {"new_version": self.stamp("claim")})
        until = time.monotonic() + PAUSED_SECONDS
        time.sleep(2 * LOOK_SECONDS)
        while time.monotonic() < until:
            if not wire.read(wire.Paused, self._ask("GET", "/is_paused"), "/is_paused").is_paused:
                break
            time.sleep(LOOK_SECONDS)
        self.check_owner(self._read_stamp())

    def _read_stamp(self) -> str:
        return wire.read(wire.Stamp, self._ask("GET", "/weight_info"), "/weight_info").weight_version

    # ------------------------------------------------------------------ first contact and watch

    def _reach(self) -> None:
        """Find the model to use, and whether its weights are fixed: whether the server lacks the endpoints for them."""
        path = "/v1/models"
        while True:
            try:
                body = self._ask("GET", path, most=1 << 20)
                self.fixed = self._is_fixed()
                break
            except Trouble as error:
                self.check_outage(error)
                time.sleep(min(1.0, self._settings.outage_seconds / 10))
        models = wire.read(wire.Served, body, path).data
        wanted = self._settings.model
        found = [model for model in models if wanted in (None, model.id)]
        if len(found) != 1:
            raise ServerRefused(
                f"{self.http.url} serves {', '.join(model.id[:80] for model in models[:8])}, actor.openai.model is "
                f"{wanted or 'not set'}; name one of them"
            )
        self.model, self.positions = found[0].id, found[0].max_model_len

    def _is_fixed(self) -> bool:
        try:
            self._read_stamp()
        except ServerRefused as error:
            if error.status in (404, 405):
                return True
            raise
        return False

    async def _watch(self) -> None:
        """Read the server's stamp (its health, if its weights are fixed) every LOOK_SECONDS; runs on the loop."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            async with self._quiet:
                at = time.monotonic()
                try:
                    if self.fixed:
                        await self.http.ask("GET", "/health", seconds=CONTROL_SECONDS)
                        self.sight = Sight(at, None)
                    else:
                        body = await self.http.ask("GET", "/weight_info", seconds=CONTROL_SECONDS)
                        stamp = wire.read(wire.Stamp, body, "/weight_info").weight_version
                        self.sight = Sight(at, stamp)
                except Trouble:
                    continue  # check_outage decides whether it lasts too long
                except EngineError as error:
                    self.sight = Sight(at, None, error)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None, **bounds: Any) -> bytes:
        seconds = bounds.pop("seconds", CONTROL_SECONDS)
        return self.http.wait(self.http.ask(method, path, body, seconds=seconds, **bounds), seconds * 2, path)
