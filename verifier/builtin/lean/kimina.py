"""The back end `kimina`: a Kimina Lean Server over HTTP.

    POST /api/check  {"snippets": [{"id", "code"}], "timeout", "reuse": true}  with a bearer key
    → {"results": [{"id", "time", "error" | "response": {"env", "messages", …}}]}

Everything that is not an answer about the snippet (401, 429, 5xx, no connection, the server's own timeouts) raises
BackendTrouble and never makes a proof wrong. One failing snippet makes the server answer 500 for its whole batch, so a
failed batch is sent again one snippet at a time. The server's notion of "valid" ignores sorry and axioms and is not
used: the checker inside the snippet decides. Snippets of several threads are collected into one request while another
is under way.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import Future
from typing import Any

from verifier.builtin.lean.assembly import Check, Message
from verifier.builtin.lean.backends import MAX_OUTPUT, BackendTrouble, json_object, response
from verifier.builtin.lean.settings import LeanSettings

SLACK_SECONDS = 15.0
"""Time for queueing and the network, beyond the time given to the server for Lean."""

_Waiting = tuple[Check, "Future[list[Message]]"]


class KiminaBackend:
    """A client of `settings.url`; proxies from the environment are not used, since the server is part of the
    installation."""

    def __init__(self, settings: LeanSettings) -> None:
        self._settings = settings
        self._where = str(settings.url).rstrip("/") + "/api/check"
        # No redirects: they would forward the key.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
        self._turn = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._asking = 0

    def run(self, check: Check, seconds: float) -> list[Message]:
        """See Backend.run. A waiting thread that may send a request sends the oldest snippets, not only its own."""
        future: Future[list[Message]] = Future()
        until = time.monotonic() + 2 * (seconds + SLACK_SECONDS)
        with self._turn:
            self._waiting.append((check, future))
        while not future.done():
            with self._turn:
                if future.done():
                    break
                if self._asking >= self._settings.processes or not self._waiting:
                    if time.monotonic() >= until:
                        self._waiting = [one for one in self._waiting if one[1] is not future]
                        raise BackendTrouble("deadline", f"no answer within {2 * (seconds + SLACK_SECONDS):g} s")
                    self._turn.wait(1.0)
                    continue
                batch, self._waiting = self._waiting[: self._settings.batch], self._waiting[self._settings.batch :]
                self._asking += 1
            try:
                self._check_batch(batch, seconds)
            finally:
                # What has no answer by now (an exception) fails, so that no thread waits for ever.
                _fail(batch, BackendTrouble("server", "the request was abandoned"))
                with self._turn:
                    self._asking -= 1
                    self._turn.notify_all()
        return future.result()

    def close(self) -> None:
        """See Backend.close."""
        self._opener.close()

    def _check_batch(self, batch: list[_Waiting], seconds: float) -> None:
        """Send a batch, and one snippet at a time if it fails as a whole."""
        try:
            self._ask(batch, seconds)
        except BackendTrouble as trouble:
            if len(batch) == 1 or trouble.reason in ("server_key", "server_busy"):
                _fail(batch, trouble)
                return
            for one in batch:
                try:
                    self._ask([one], seconds)
                except BackendTrouble as own:
                    _fail([one], own)

    def _ask(self, batch: list[_Waiting], seconds: float) -> None:
        snippets = [{"id": check.nonce, "code": check.file} for check, _ in batch]
        said = self._post({"snippets": snippets, "timeout": max(1, round(seconds)), "reuse": True}, seconds)
        results = said.get("results")
        if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
            raise BackendTrouble("lean_output", f"no results: {said!r:.200}")
        by_id = {result.get("id"): result for result in results}
        if len(by_id) != len(results) or by_id.keys() != {check.nonce for check, _ in batch}:
            raise BackendTrouble("lean_output", f"{len(results)} results for {len(batch)} other snippets")
        for check, future in batch:
            try:
                future.set_result(_read(by_id[check.nonce]))
            except BackendTrouble as trouble:
                future.set_exception(trouble)

    def _post(self, body: dict[str, Any], seconds: float) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._settings.key is not None:
            headers["Authorization"] = f"Bearer {self._settings.key.get_secret_value()}"
        request = urllib.request.Request(self._where, json.dumps(body).encode(), headers, method="POST")
        try:
            with self._opener.open(request, timeout=seconds + SLACK_SECONDS) as reply:
                data = reply.read(MAX_OUTPUT * len(body["snippets"]) + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise BackendTrouble(_meaning(error.code), f"HTTP {error.code} from {self._where}") from None
        except TimeoutError as error:
            raise BackendTrouble("deadline", f"no answer within {seconds + SLACK_SECONDS:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise BackendTrouble("server", f"{self._where}: {error}") from error
        return json_object(data)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _meaning(status: int) -> str:
    return {401: "server_key", 403: "server_key", 429: "server_busy", 503: "server_busy"}.get(status, "server")


def _read(result: dict[str, Any]) -> list[Message]:
    error = result.get("error")
    if error is not None:
        raise BackendTrouble("deadline" if "timed out" in str(error) else "lean_died", str(error)[:500])
    return response(result.get("response"))


def _fail(batch: list[_Waiting], trouble: BackendTrouble) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(trouble)
