"""Checks of the Lean installation before a run, and its self-test; nothing is changed."""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from verifier.builtin.confinement import ConfinementUnavailable
from verifier.builtin.lean.confined import open_sandbox
from verifier.builtin.lean.selftest import Line, selftest
from verifier.builtin.lean.settings import LeanSettings
from verifier.builtin.lean.verifier import open_backend

LIBRARIES = (".lake/packages/mathlib/.lake/build/lib", "lake-packages/mathlib/build/lib", ".lake/build/lib")
"""Folders of a Lake project of which at least one exists once something has been built."""
SECONDS = 5.0
"""Deadline of the request to a server."""


def check(settings: LeanSettings) -> list[str]:
    """One line with a remedy for each thing that is missing; empty if nothing is."""
    if settings.backend == "kimina":
        return _server(settings)
    command = settings.repl if settings.backend == "repl" else settings.lean
    missing = [*_project(settings.project), *_program(command, settings)]
    try:
        open_sandbox(settings, command).close()
    except ConfinementUnavailable as error:
        missing.append(f"sandbox: {error}")
    if settings.replay and shutil.which(settings.replay[0]) is None:
        missing.append(f"external checker {settings.replay[0]!r} is not on PATH; install it or empty `replay`")
    for path in settings.environment.get("LEAN_PATH", "").split(os.pathsep):
        if path and not Path(path).is_dir():
            missing.append(f"LEAN_PATH names {path}, which is not a directory")
    return missing


def trial(settings: LeanSettings) -> Iterator[Line]:
    """The lines of the self-test, each as soon as it is known; minutes where an import takes long."""
    backend = open_backend(settings)
    try:
        yield from selftest(settings, backend)
    finally:
        backend.close()


def _project(project: Path | None) -> list[str]:
    if project is None:
        return []
    if not project.is_dir():
        return [f"project {project} is not a directory; create it with `lake new` or mount it"]
    missing = []
    if not any((project / name).exists() for name in ("lakefile.lean", "lakefile.toml")):
        missing.append(f"project {project} has no lakefile: it is not a Lake project")
    if not (project / "lean-toolchain").exists():
        missing.append(f"project {project} has no lean-toolchain file: the version of Lean is not fixed; add one")
    if not any((project / path).is_dir() for path in LIBRARIES):
        missing.append(f"project {project}: nothing is built; run `lake exe cache get` and `lake build` in it")
    return missing


def _program(command: Sequence[str], settings: LeanSettings) -> list[str]:
    """Check the programs of `command`: its first word, and the program that `lake env` starts."""
    search = settings.environment.get("PATH", os.environ.get("PATH", ""))
    missing = []
    for program in dict.fromkeys([command[0], *(command[2:3] if tuple(command[:2]) == ("lake", "env") else ())]):
        found = Path(program).is_file() if "/" in program else shutil.which(program, path=search) is not None
        if not found and settings.project is not None and program == "repl":
            found = (settings.project / ".lake/build/bin/repl").exists()
        if not found:
            remedy = {
                "lake": "install elan and the toolchain of the project",
                "lean": "install elan and the toolchain of the project",
                "repl": "build leanprover-community/repl with the project's toolchain and give its path as `repl`",
            }.get(program, "correct the path or install it")
            missing.append(f"{program} is not found; {remedy}")
    return missing


def _server(settings: LeanSettings) -> list[str]:
    where = str(settings.url).rstrip("/") + "/health"
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(where, timeout=SECONDS):
            return []
    except urllib.error.HTTPError as error:
        with error:
            return [] if error.code < 500 else [f"{where} answers {error.code}; look at the server's log"]
    except OSError as error:
        return [f"{where} cannot be reached: {error}; start the server or correct `url`"]
