"""The search for a Python that runs in the sandbox, and the list of what such a Python must be able to read."""

from __future__ import annotations

import glob
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from verifier.builtin.confinement import ConfinementUnavailable
from verifier.builtin.python.settings import PythonOptions
from verifier.sandbox.limits import SandboxTrouble
from verifier.sandbox.sandbox import Sandbox

log = logging.getLogger("sieve.python")

_WHERE = """
import json, os, sys
mapped = {line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if "/" in line}
print(json.dumps({"path": sys.path, "prefix": sys.base_prefix, "mapped": sorted(mapped)}))
"""
_SECONDS = 30.0
_MANY = 64
"""More shared libraries than this in one directory are given as the directory."""


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
        try:
            files = installation(candidate)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            tried.append(f"{candidate}: {error}")
            continue
        sandbox = options.sandbox.open((Path(candidate), *files, *options.import_from), programs=False)
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


def installation(interpreter: str) -> tuple[Path, ...]:
    """The files and directories that an interpreter loads: its program, its standard library, its shared libraries.

    Raises OSError, ValueError, subprocess.SubprocessError if it does not run.
    """
    done = subprocess.run(
        [interpreter, "-I", "-S", "-c", _WHERE],
        capture_output=True,
        check=True,
        timeout=_SECONDS,
        env={"PATH": os.defpath, "LANG": "C.UTF-8"},
    )
    found = json.loads(done.stdout)
    own = os.path.join(found["prefix"], "lib")
    beside = glob.glob(f"{glob.escape(own)}/*.so*") if not own.startswith("/usr/lib") else []
    libraries = beside if len(beside) <= _MANY else [own]
    wanted = [os.path.realpath(interpreter), *found["path"], *found["mapped"], *libraries]
    return tuple(dict.fromkeys(Path(path) for path in wanted if os.path.isabs(path) and os.path.exists(path)))
