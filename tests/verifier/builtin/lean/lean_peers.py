"""Stand-ins for a Lean installation that speak the documented protocols.

`python lean_peers.py DIRECTORY [word …]` is a REPL process (leanprover-community/repl's protocol), with `--json FILE`
it is a `lean` command, and `kimina(…)` is a Kimina Lean Server. Each answers a `#sieve_check` with the finding of a
real Lean for the same check, recorded in DIRECTORY/findings.json, with the nonce replaced; anything else is answered
as the protocol prescribes. Words make a peer misbehave: see `Peer`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

EXCHANGES = Path(__file__).parent / "exchanges"
_CHECK = re.compile(r'^#sieve_check "([0-9a-f]{32})" ', re.MULTILINE)
_MODE = re.compile(r' "(walk|trust)" "[0-9]+"$')
_NONCE = "0" * 32


def key(prelude: str, command: str) -> str:
    """The key of a recorded finding: the header, and the check without nonce, library mode and heartbeats."""
    header = re.sub(r"/- The trusted half.*end SieveCheck", "", prelude, flags=re.DOTALL)
    asked = _MODE.sub("", _CHECK.sub("#sieve_check ", command).strip())
    return hashlib.sha256(f"{header.strip()}\n{asked}".encode()).hexdigest()


def nonce(command: str) -> str:
    found = _CHECK.search(command)
    assert found is not None
    return found.group(1)


class Peer:
    """Answers checks from recorded findings. `words`: hang (never answers a check), die (ends instead), garbage, flood,
    leak (keeps 32 MiB for each check), valid (calls everything proved, like a broken checker), sorry (accepts, with a
    sorry warning only)."""

    def __init__(self, directory: Path, words: frozenset[str] = frozenset()) -> None:
        self.words = words
        kept = json.loads((directory / "findings.json").read_text(encoding="utf-8"))
        self._findings: dict[str, list[dict[str, Any]]] = kept["findings"]

    def answer(self, prelude: str, command: str) -> list[dict[str, Any]]:
        """The messages for one check."""
        mine = nonce(command)
        if "valid" in self.words:
            said = {"sieve": mine, "status": "ok", "detail": "", "axioms": ""}
            return [message("info", json.dumps(said, separators=(",", ":")))]
        if "sorry" in self.words:
            return [message("warning", "declaration uses 'sorry'")]
        recorded = self._findings.get(key(prelude, command))
        if recorded is None:
            return [message("error", f"no exchange is recorded for {command[:200]}")]
        return [{**one, "data": one["data"].replace(_NONCE, mine)} for one in recorded]


def message(severity: str, data: str) -> dict[str, Any]:
    return {"severity": severity, "pos": {"line": 1, "column": 0}, "endPos": {"line": 1, "column": 1}, "data": data}


def repl(peer: Peer) -> None:
    """Behave like the REPL on stdin and stdout until the end of input."""
    preludes: list[str] = []
    leaked: list[bytes] = []
    for question in _questions():
        request = json.loads(question)
        said: dict[str, Any]
        if "env" not in request:
            preludes.append(request["cmd"])
            said = {"env": len(preludes) - 1}
        elif not 0 <= request["env"] < len(preludes):
            said = {"message": "Unknown environment."}
        else:
            for word in peer.words & {"hang", "die", "garbage", "flood"}:
                misbehave(word)
            if "leak" in peer.words:
                leaked.append(b"x" * (32 << 20))
            prelude = preludes[request["env"]]
            preludes.append(prelude)
            said = {"messages": peer.answer(prelude, request["cmd"]), "env": len(preludes) - 1}
        print(json.dumps(said, indent=1, ensure_ascii=False) + "\n", flush=True)


def check_file(peer: Peer, path: str) -> int:
    """Behave like `lean --json FILE`: print a line for each message."""
    text = Path(path).read_text(encoding="utf-8")
    start = text.index("\n#sieve_check ") + 1
    for word in peer.words & {"hang", "die", "flood"}:
        misbehave(word)
    print("a line of lake")
    for one in peer.answer(text[:start], text[start:]):
        print(json.dumps({"fileName": path, **one, "severity": one["severity"].replace("info", "information")}))
    return 0


def misbehave(word: str) -> None:
    if word == "hang":
        if os.fork() == 0:  # a child that outlives a kill of its parent alone
            time.sleep(600)
            os._exit(0)
        time.sleep(600)
    if word == "die":
        os._exit(3)
    if word == "garbage":
        print("not JSON\n", flush=True)
    while word == "flood":
        print("x" * 65536, flush=True)


def _questions() -> Iterator[str]:
    lines: list[str] = []
    for line in sys.stdin:
        if line.strip():
            lines.append(line)
        elif lines:
            yield "".join(lines)
            lines = []


@contextmanager
def kimina(
    peer: Peer, *, secret: str = "", failing: str = "", statuses: Sequence[int] = ()
) -> Iterator[tuple[str, list[int]]]:
    """Run a Kimina server; yields its URL and the sizes of the batches received. The first requests are answered with
    `statuses`; a snippet that contains `failing` makes the answer 500 for its whole batch."""
    sizes: list[int] = []
    left = list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            self._reply(200, {"status": "ok"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/api/check":
                return self._reply(404, {"detail": "Not Found"})
            if secret and self.headers.get("Authorization") != f"Bearer {secret}":
                return self._reply(401, {"detail": "Missing or invalid API key"})
            sizes.append(len(body["snippets"]))
            if left:
                return self._reply(left.pop(0), {"detail": "No available REPLs"})
            if failing and any(failing in snippet["code"] for snippet in body["snippets"]):
                return self._reply(500, {"detail": "REPL failed"})
            if "hang" in peer.words:
                time.sleep(body["timeout"] + 30)
            if "garbage" in peer.words:
                return self._reply(200, {"results": [{"id": "of another", "time": 0.1, "response": {"env": 0}}]})
            return self._reply(200, {"results": [self._one(snippet, body) for snippet in body["snippets"]]})

        def _one(self, snippet: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
            if "timeout" in peer.words:
                error = f"Lean REPL command timed out in {float(body['timeout'])} seconds"
                return {"id": snippet["id"], "time": float(body["timeout"]), "error": error}
            start = snippet["code"].index(f'#sieve_check "{snippet["id"]}')
            messages = peer.answer(snippet["code"][:start], snippet["code"][start:])
            return {"id": snippet["id"], "time": 0.2, "response": {"env": 1, "messages": messages}}

        def _reply(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sizes
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    words = frozenset(sys.argv[2:])
    if "--json" in words:
        sys.exit(check_file(Peer(Path(sys.argv[1]), words), sys.argv[-1]))
    repl(Peer(Path(sys.argv[1]), words))
