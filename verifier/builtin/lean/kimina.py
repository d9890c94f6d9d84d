"""The back end `kimina`: a Kimina Lean Server over HTTP.

    POST /api/check  {"snippets": [{"id", "code"}], "timeout", "reuse": true}  with a bearer key
    → {"results": [{"id", "time", "error" | "response": {"env", "messages", …}}]}

The server cuts the lines at the top of a snippet that begin with `import ` off as its header, runs the header once in
each of its REPLs, and every snippet with the same header in the environment after it. The checker is therefore part of
the header (see kimina_header.py) and is elaborated once in each REPL.

Snippets of several threads that have one header go into one request while others are under way. The server's `timeout`
bounds each command by itself. It holds for an import too, so a header is imported first, by a request of its own with
`start_seconds`. A request as a whole has as long as the server's REPLs may take for its snippets.

Everything that is not an answer about the snippet makes no proof wrong. What may be otherwise a moment later is asked
again until the patience of `run` ends: a server without a free REPL after growing pauses, a REPL that lost its import
after another import, a request that failed or took too long as a whole in halves, so that one snippet cannot take the
others down. The server's notion of "valid" ignores sorry and axioms and is not used: the checker decides.
"""

from __future__ import annotations

import http.client
import json
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from verifier.builtin.lean.assembly import Check, Message
from verifier.builtin.lean.backends import MAX_OUTPUT, BackendTrouble, json_object, response
from verifier.builtin.lean.kimina_header import PROBE, body, header
from verifier.builtin.lean.settings import LeanSettings

ALLOWANCE_SECONDS = 10.0
"""What the server adds to `timeout` times the number of snippets before it gives a request up itself."""
SLACK_SECONDS = 5.0
"""Time for the network, beyond what the server may take."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 8.0
"""How long nothing is sent to a busy server: the first pause, doubled each time up to the longest."""
MAX_HEADERS = 256
"""The most headers remembered as imported; after that many, all are imported again."""


class KiminaBackend:
    """A client of `settings.url`; proxies from the environment are not used, since the server is part of the
    installation."""

    def __init__(self, settings: LeanSettings) -> None:
        self._settings = settings
        self._where = str(settings.url).rstrip("/") + "/api/check"
        # No redirects: they would forward the key.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
        self._turn = threading.Condition()
        self._queue: list[_Question] = []
        self._asking = 0
        self._pause, self._resume_at = 0.0, 0.0
        self._imported: dict[str, int] = {}
        """Headers → how many snippets at once were answered from REPLs that had imported it."""

    def run(self, check: Check, seconds: float) -> list[Message]:
        """See Backend.run. A waiting thread that may send a request sends the oldest snippets, not only its own.

        It waits at most `start_seconds` and the time of two requests, or of the request that it sends itself.
        """
        mine = _Question(check, header(check), self._settings.batch)
        until = time.monotonic() + self._settings.start_seconds + 2 * self._longest(self._settings.batch, seconds)
        with self._turn:
            self._queue.append(mine)
        while not mine.answer.done():
            with self._turn:
                if mine.answer.done():
                    break
                now = time.monotonic()
                if now >= until:
                    mine.answer.cancel()
                    self._queue = [one for one in self._queue if one is not mine]
                    raise mine.trouble
                if self._asking >= self._settings.processes or now < self._resume_at or not self._queue:
                    self._turn.wait(min(until, self._resume_at if self._resume_at > now else until) - now)
                    continue
                batch = self._take()
                self._asking += 1
            try:
                self._send(batch, seconds)
            finally:
                with self._turn:
                    self._asking -= 1
                    self._turn.notify_all()
        return mine.answer.result()

    def close(self) -> None:
        """See Backend.close."""
        self._opener.close()

    def _take(self) -> list[_Question]:
        """The oldest question, and those that may go with it in one request."""
        batch = [self._queue[0]]
        most = batch[0].company
        for one in self._queue[1:]:
            if one.header == batch[0].header and len(batch) < min(most, one.company):
                batch.append(one)
                most = min(most, one.company)
        self._queue = [one for one in self._queue if one not in batch]
        return batch

    def _send(self, batch: list[_Question], seconds: float) -> None:
        """Answer every question of the batch, or put it back into the queue."""
        try:
            self._import(batch[0].header, len(batch))
            results = self._post([(one.check.nonce, one.code) for one in batch], seconds)
        except _Again as again:
            return self._put_back(batch, again)
        except BackendTrouble as trouble:
            return _fail(batch, trouble)
        except BaseException:
            _fail(batch, BackendTrouble("server", "the request was abandoned"))  # no thread waits for ever
            raise
        with self._turn:
            self._pause = 0.0
        for one in batch:
            try:
                found = _read(results[one.check.nonce])
            except _Again as again:
                self._put_back([one], again)
            except BackendTrouble as trouble:
                self._forget(one.header)  # the server has ended its REPL
                _fail([one], trouble)
            else:
                if not one.answer.done():
                    one.answer.set_result(found)
        return None

    def _put_back(self, batch: list[_Question], again: _Again) -> None:
        self._forget(batch[0].header)
        if again.smaller and len(batch) == 1 and again.trouble.reason != "server_busy":
            return _fail(batch, again.trouble)
        with self._turn:
            for one in batch:
                one.trouble = again.trouble
                if again.smaller:
                    one.company = max(1, len(batch) // 2)
            self._queue[:0] = [one for one in batch if not one.answer.done()]
            now = time.monotonic()
            if again.trouble.reason == "server_busy" and now >= self._resume_at:  # once for all of a request
                self._pause = min(max(2 * self._pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
                self._resume_at = now + self._pause
        return None

    def _import(self, imports: str, count: int) -> None:
        """Let as many REPLs as `count` snippets at once may meet import a header. Raises BackendTrouble, _Again."""
        if self._imported.get(imports, 0) >= count:
            return
        seconds = self._settings.start_seconds
        for result in self._post([(str(place), f"{imports}\n{PROBE}") for place in range(count)], seconds, 1).values():
            if "timed out" in str(result.get("error")):
                raise BackendTrouble("deadline", f"the header was not imported within start_seconds = {seconds:g}")
            for message in _read(result):
                if message.severity == "error":
                    raise BackendTrouble("lean_output", f"the header does not elaborate there: {message.text[:500]}")
        if len(self._imported) >= MAX_HEADERS:
            self._imported.clear()
        self._imported[imports] = count

    def _forget(self, imports: str) -> None:
        self._imported.pop(imports, None)

    def _longest(self, count: int, seconds: float, rounds: int | None = None) -> float:
        """Seconds in which the server's REPLs, shared by all requests under way, check `count` snippets."""
        if rounds is None:
            repls = max(self._settings.repls, self._settings.processes)
            rounds = math.ceil(count * self._settings.processes / repls)
        return rounds * _timeout(seconds) + ALLOWANCE_SECONDS + SLACK_SECONDS

    def _post(
        self, snippets: list[tuple[str, str]], seconds: float, rounds: int | None = None
    ) -> dict[str, dict[str, Any]]:
        """The results of a request by the snippets' ids. Raises BackendTrouble, _Again."""
        listed = [{"id": id, "code": code} for id, code in snippets]
        asked = {"snippets": listed, "timeout": _timeout(seconds), "reuse": True}
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._settings.key is not None:
            headers["Authorization"] = f"Bearer {self._settings.key.get_secret_value()}"
        request = urllib.request.Request(self._where, json.dumps(asked).encode(), headers, method="POST")
        longest = self._longest(len(snippets), seconds, rounds)
        try:
            with self._opener.open(request, timeout=longest) as reply:
                data = reply.read(MAX_OUTPUT * len(snippets) + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise _meaning(error.code, f"HTTP {error.code} from {self._where}") from None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
                raise _Again(
                    "server_busy", f"no answer from {self._where} within {longest:g} s", smaller=True
                ) from error
            raise BackendTrouble("server", f"{self._where}: {error}") from error
        results = json_object(data).get("results")
        if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
            raise BackendTrouble("lean_output", f"no results: {data[:200]!r}")
        by_id = {result.get("id"): result for result in results}
        if len(by_id) != len(results) or by_id.keys() != {id for id, _ in snippets}:
            raise BackendTrouble("lean_output", f"{len(results)} results for {len(snippets)} other snippets")
        return by_id


@dataclass(eq=False, slots=True)
class _Question:
    check: Check
    header: str
    company: int
    """The most snippets in one request with this one."""
    answer: Future[list[Message]] = field(default_factory=Future)
    trouble: BackendTrouble = field(default_factory=lambda: BackendTrouble("server_busy", "the server was never free"))
    """Why there is no answer yet."""

    @property
    def code(self) -> str:
        return f"{self.header}\n{body(self.check)}"


class _Again(Exception):
    """The same question may get an answer later; `trouble` is what remains to be said if it does not.

    `smaller`: with fewer others in its request.
    """

    def __init__(self, reason: str, detail: str, *, smaller: bool = False) -> None:
        super().__init__(detail)
        self.trouble = BackendTrouble(reason, detail)
        self.smaller = smaller


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _timeout(seconds: float) -> int:
    """The server takes whole seconds."""
    return max(1, math.ceil(seconds))


def _meaning(status: int, detail: str) -> Exception:
    match status:
        case 401 | 403:
            return BackendTrouble("server_key", detail)
        case 429 | 503:
            return _Again("server_busy", detail)
        case 504:  # the time of the whole request is over, which is no snippet's fault
            return _Again("server_busy", detail, smaller=True)
        case _ if status >= 500:
            return _Again("server", detail, smaller=True)
    return BackendTrouble("server", detail)


def _read(result: dict[str, Any]) -> list[Message]:
    """Lean's messages in one result. Raises BackendTrouble, _Again."""
    error = result.get("error")
    if error is None:
        said = result.get("response")
        # The server's REPLs may drop environments at once and then name none.
        return response({"env": None, **said} if isinstance(said, dict) and "message" not in said else said)
    text = str(error)[:500]
    if "No available REPLs" in text:
        raise _Again("server_busy", text)
    if "header command timed out" in text:  # in a REPL that had to import the header within the time of a snippet
        raise _Again("server_busy", text)
    raise BackendTrouble("deadline" if "timed out" in text else "lean_died", text)


def _fail(batch: Iterable[_Question], trouble: BackendTrouble) -> None:
    for one in batch:
        if not one.answer.done():
            one.answer.set_exception(trouble)
