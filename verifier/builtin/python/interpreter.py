"""The search for a Python that runs in the sandbox."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from verifier.builtin.confinement import ConfinementUnavailable
from verifier.builtin.python.settings import PythonOptions
from verifier.sandbox.limits import SandboxTrouble
from verifier.sandbox.sandbox import Sandbox

log = logging.getLogger("sieve.python")


def find_interpreter(options: PythonOptions) -> tuple[str, str, Sandbox]:
    """The first interpreter that runs confined, its version, and its sandbox. Raises ConfinementUnavailable."""
    own = os.path.realpath(sys.executable)
    candidates = (
        [str(options.interpreter)] if options.interpreter else [own, "/usr/local/bin/python3", "/usr/bin/python3"]
    )
    tried = []
    for candidate in candidates:
        if not os.access(candidate, os.X_OK):
            continue
        sandbox = options.sandbox.open((*_installation(candidate), *options.import_from))
        try:
            outcome = sandbox.run([candidate, "-I", "-S", "-c", "import json, sys; print(sys.version.split()[0])"])
        except SandboxTrouble as error:
            tried.append(f"{candidate}: {error}")
        else:
            if outcome.ended == "exit" and outcome.code == 0:
                version = outcome.stdout.decode().strip()
                log.info("programs run in %s (Python %s)", candidate, version)
                return candidate, version, sandbox
            tried.append(f"{candidate}: {outcome.ended} {outcome.code}, {outcome.stderr_tail}")
        sandbox.close()
    raise ConfinementUnavailable(
        f"no Python runs in the sandbox ({'; '.join(tried)}); set interpreter to one that every user may execute, such "
        "as /usr/bin/python3 (for a service run as root, programs run as another user and cannot reach a Python below "
        "/root)"
    )


def _installation(interpreter: str) -> tuple[Path, ...]:
    """The installation directory of an interpreter outside /usr, which it must be able to read."""
    path = Path(interpreter).resolve()
    return () if path.is_relative_to("/usr") else (path.parents[1],)
