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

sys.path[:0] = [str(Path(__file__).resolve().parents[4])]  # where it is started as a program
from verifier.builtin.lean import assembly  # noqa: E402
from verifier.builtin.lean.kimina_header import PROBE, load_checker  # noqa: E402

EXCHANGES = Path(__file__).parent / "exchanges"
_CHECK = re.compile(r'^#sieve_check "([0-9a-f]{32})" ', re.MULTILINE)
_MODE = re.compile(r' "(?:walk|trust)( kernel)?" [0-9]+$')
_NONCE = "0" * 32


def key(prelude: str, command: str) -> str:
    """The key of a recorded finding: the header, and the check without nonce, library mode and heartbeats."""
    header = re.sub(r"/- The trusted half.*end SieveCheck", "", prelude, flags=re.DOTALL)
    asked = _MODE.sub(r"\1", _CHECK.sub("#sieve_check ", command).strip())
    return hashlib.sha256(f"{header.strip()}\n{asked}".encode()).hexdigest()


def nonce(command: str) -> str:
    found = _CHECK.search(command)
    assert found is not None
    return found.group(1)


class Peer:
    """Answers checks from recorded findings. `words`: hang (never answers a check), die (ends instead), garbage, flood,
    leak (keeps 32 MiB for each check), valid (calls everything proved, like a broken checker), sorry (accepts, with a
    sorry warning only); `import=S` and `check=S` (an import, and a check of the theorem `truth`, take S seconds),
    `stuck=TEXT` and `dies=TEXT` (only checks that contain it), `log=FILE` (a line for each command)."""

    def __init__(self, directory: Path, words: frozenset[str] = frozenset()) -> None:
        self.words = words
        self.values = dict(word.split("=", 1) for word in words if "=" in word)
        kept = json.loads((directory / "findings.json").read_text(encoding="utf-8"))
        self._about: str = kept["about"]
        self._findings: dict[str, list[dict[str, Any]]] = kept["findings"]

    def answer(self, prelude: str, command: str) -> list[dict[str, Any]]:
        """The messages for one check, or for several, each on its line."""
        if command == "#eval Lean.versionString":
            return [message("info", json.dumps(self._about))]
        lines = [line for line in command.splitlines() if line.startswith("#sieve_check")]
        return [message for line in lines for message in self._answer(prelude, line)]

    def _answer(self, prelude: str, command: str) -> list[dict[str, Any]]:
        mine = nonce(command)
        if "valid" in self.words:
            said = {"sieve": mine, "status": "ok", "detail": "", "axioms": ""}
            return [message("info", json.dumps(said, separators=(",", ":")))]
        if "sorry" in self.words:
            return [message("warning", "declaration uses 'sorry'")]
        recorded = self._findings.get(key(prelude, command))
        if recorded is None:
            return [message("error", f"no exchange is recorded for {command[:200]}")]
        return [message(one["severity"], one["data"].replace(_NONCE, mine)) for one in recorded]


def message(severity: str, data: str) -> dict[str, Any]:
    return {"severity": severity, "pos": {"line": 1, "column": 0}, "endPos": {"line": 1, "column": 1}, "data": data}


def repl(peer: Peer) -> None:
    """Behave like the REPL on stdin and stdout until the end of input."""
    environments: list[str] = []
    leaked: list[bytes] = []
    for question in _questions():
        request = json.loads(question)
        said: dict[str, Any]
        if "log" in peer.values:
            with open(peer.values["log"], "a", encoding="utf-8") as log:
                log.write(json.dumps({"pid": os.getpid(), "cmd": request["cmd"][:200]}) + "\n")
        if request.get("env") is not None and not 0 <= request["env"] < len(environments):
            said = {"message": "Unknown environment."}
        else:
            before = "" if request.get("env") is None else environments[request["env"]] + "\n"
            if "leak" in peer.words and before:
                leaked.append(b"x" * (32 << 20))
            messages = _elaborate(peer, before, request["cmd"])
            environments.append(before + request["cmd"])
            said = {"messages": messages} if messages else {}
            said["env"] = len(environments) - 1
        print(json.dumps(said, indent=1, ensure_ascii=False) + "\n", flush=True)


_FIRST_IMPORT = re.compile(r"^import ", re.MULTILINE)


def _elaborate(peer: Peer, before: str, command: str) -> list[dict[str, Any]]:
    """What Lean says to a command in the environment after the text `before`."""
    text = before + command
    if not before and "import" in peer.values and _FIRST_IMPORT.search(command):
        time.sleep(float(peer.values["import"]))
    if before and _FIRST_IMPORT.search(command):
        return [message("error", "invalid 'import' command, it must be used in the beginning of the file")]
    known = "namespace SieveCheck" in text
    if command.strip() == PROBE:
        return [] if known else [message("error", "unknown namespace `SieveCheck`")]
    if command.strip() == "#eval 1":
        return [message("info", "1")]
    if command.strip().endswith("#eval Lean.versionString"):
        return peer.answer("", "#eval Lean.versionString")
    check = _CHECK.search(text)
    if check is None or check.start() < len(before):
        return []
    if not known:
        return [message("error", "unexpected token '#'; expected command")]
    for word in peer.words & {"hang", "die", "garbage", "flood"}:
        misbehave(word)
    for name, word in (("stuck", "hang"), ("dies", "die")):
        if name in peer.values and peer.values[name] in text[check.start() :]:
            misbehave(word)
    if '"truth"' in command:
        time.sleep(float(peer.values.get("check", 0)))
    return peer.answer(_prelude(text[: check.start()]), text[check.start() :])


def _prelude(text: str) -> str:
    """What comes before a check, with the checker at its place also where a Kimina server has received it."""
    load = " " + load_checker()
    return "".join(assembly.split(text.replace(load, ""))) if load in text else text


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
    peer: Peer, *, secret: str = "", failing: str = "", first: Sequence[str | int] = ()
) -> Iterator[tuple[str, list[int]]]:
    """Run a stand-in for a Kimina server, which answers as the real one did (exchanges/kimina.json).

    Yields its URL and the sizes of the batches of checks received. The first requests are answered with the recorded
    exchanges or the statuses of `first`; a snippet that contains `failing` makes the answer 500 for its whole batch, as
    in the server's first releases.
    """
    kept = json.loads((EXCHANGES / "kimina.json").read_text(encoding="utf-8"))["exchanges"]
    sizes: list[int] = []
    left = list(first)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            self._reply(kept["health"])

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/api/check":
                return self._reply({"status": 404, "body": {"detail": "Not Found"}})
            if secret and self.headers.get("Authorization") != f"Bearer {secret}":
                return self._reply(kept["wrong key"])
            if any("#sieve_check" in snippet["code"] for snippet in body["snippets"]):
                sizes.append(len(body["snippets"]))
            if left:
                return self._reply(self._told(left.pop(0), body["snippets"]))
            if failing and any(failing in snippet["code"] for snippet in body["snippets"]):
                return self._reply({"status": 500, "body": {"detail": "REPL failed"}})
            if "garbage" in peer.words:
                return self._reply({"status": 200, "body": {"results": [{"id": "of another", "time": 0.1}]}})
            return self._reply({"status": 200, "body": {"results": [self._one(one) for one in body["snippets"]]}})

        def _told(self, what: str | int, snippets: list[dict[str, str]]) -> dict[str, Any]:
            if isinstance(what, int):
                return {"status": what, "body": {"detail": "recorded nowhere"}}
            exchange = kept[what]
            like = exchange["body"].get("results")
            return (
                {**exchange, "body": {"results": [{**like[0], "id": one["id"]} for one in snippets]}}
                if like
                else exchange
            )

        def _one(self, snippet: dict[str, str]) -> dict[str, Any]:
            check = re.compile("#eval Lean.versionString|" + _CHECK.pattern, re.MULTILINE).search(snippet["code"])
            if check is None:
                return {**kept["import"]["body"]["results"][0], "id": snippet["id"]}
            if "timeout" in peer.words:
                return {**kept["check timed out"]["body"]["results"][0], "id": snippet["id"]}
            like = kept["proved"]["body"]["results"][0]
            messages = peer.answer(_prelude(snippet["code"][: check.start()]), snippet["code"][check.start() :].strip())
            return {**like, "id": snippet["id"], "response": {**like["response"], "messages": messages}}

        def _reply(self, exchange: dict[str, Any]) -> None:
            data = json.dumps(exchange["body"]).encode()
            self.send_response(exchange["status"])
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
