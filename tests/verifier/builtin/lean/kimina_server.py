"""The Kimina Lean Server of PyPI (kimina-ast-server), with a stand-in for its REPLs.

`make .venv-kimina/installed` installs it in an environment of its own. It is started without what it would download at
its first start (the client of a database, which it does not use here), and with the TypedDict that its models need on
Python 3.11.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.ports import hold_port
from tests.verifier.builtin.lean.lean_peers import EXCHANGES

PYTHON = Path(os.environ.get("SIEVE_TEST_KIMINA", Path(__file__).parents[4] / ".venv-kimina/bin/python"))
"""The interpreter of the environment in which the server is installed."""
START_SECONDS = 60.0
KEY = "the key"
_BOOT = """
import sys, types, typing, typing_extensions
typing.TypedDict = typing_extensions.TypedDict
client = types.ModuleType("server.prisma_client")
client.prisma = None
sys.modules["server.prisma_client"] = client
from server.__main__ import run_server
run_server()
"""


@contextlib.contextmanager
def kimina_server(directory: Path, *words: str, repls: int = 2, max_wait: int = 3600) -> Iterator[str]:
    """Run the server with `repls` stand-ins (see lean_peers.Peer for `words`); yields its URL."""
    command = [sys.executable, str(Path(__file__).parent / "lean_peers.py"), str(EXCHANGES), *words]
    programs = {"lake": 'shift; exec "$@"', "repl": f"exec {shlex.join(command)}"}  # it runs `lake env REPL`
    for name, text in programs.items():
        (directory / name).write_text(f"#!/bin/sh\n{text}\n")
        (directory / name).chmod(0o755)
    port = hold_port()
    with (directory / "server.log").open("wb") as log:
        settings = {
            "PATH": f"{directory}:{os.environ['PATH']}",
            "LEAN_SERVER_HOST": "127.0.0.1",
            "LEAN_SERVER_PORT": str(port),
            "LEAN_SERVER_API_KEY": KEY,
            "LEAN_SERVER_REPL_PATH": str(directory / "repl"),
            "LEAN_SERVER_PROJECT_DIR": str(directory),
            "LEAN_SERVER_SKIP_VALIDATION": "1",
            "LEAN_SERVER_MAX_REPLS": str(repls),
            "LEAN_SERVER_MAX_WAIT": str(max_wait),
            "LEAN_SERVER_LOG_LEVEL": "ERROR",
        }
        process = subprocess.Popen(
            [PYTHON, "-c", _BOOT],
            env=settings,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            _await(f"http://127.0.0.1:{port}/health", process, directory / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        with contextlib.suppress(OSError), opener.open(url, timeout=5):
            return
        assert process.poll() is None and time.monotonic() < until, log.read_text(errors="replace")[-2000:]
        time.sleep(0.1)
