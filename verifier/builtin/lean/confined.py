"""How the programs of Lean are confined, for the back ends that start them: what they read, their environment, limits.

They may read the system's programs, the project, `sandbox.readable`, the files that the command names, elan's directory
with its toolchains, and the toolchain of a program on PATH. All of it is read-only; they write to a directory of the
run only. A proof that would act while it is elaborated, whatever way it found, can do so nowhere else.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from verifier.builtin.lean.backends import MAX_OUTPUT
from verifier.builtin.lean.settings import LeanSettings
from verifier.sandbox.limits import Limits
from verifier.sandbox.sandbox import Sandbox


def open_sandbox(settings: LeanSettings, command: Sequence[str]) -> Sandbox:
    """A sandbox for `command`. Raises ConfinementUnavailable where programs cannot be confined."""
    paths = [settings.project, _elan(settings), *_toolchain(command[0], environment(settings)["PATH"])]
    paths += [Path(word) for word in command if word.startswith("/") and Path(word).is_file()]
    return settings.sandbox.open(tuple(path for path in paths if path is not None and path.exists()))


def environment(settings: LeanSettings) -> dict[str, str]:
    """The variables of a confined program besides HOME, TMPDIR and LANG: PATH, ELAN_HOME and `settings.environment`."""
    found = {"PATH": os.environ.get("PATH", os.defpath)}
    if elan := _elan(settings):
        found["ELAN_HOME"] = str(elan)
    return found | settings.environment


def limits(settings: LeanSettings, wall_seconds: float, cpu_seconds: float) -> Limits:
    """The limits of one run."""
    return Limits(
        wall_seconds=wall_seconds,
        cpu_seconds=cpu_seconds,
        memory_bytes=settings.memory_bytes,
        address_space=False,  # Lean maps its library into memory
        processes=8,  # for lake, and for elan's launchers
        threads=256,
        output_bytes=MAX_OUTPUT,
        open_files=4096,
    )


def _elan(settings: LeanSettings) -> Path | None:
    """The directory of elan, which holds its launchers and toolchains; None if it is not installed."""
    named = settings.environment.get("ELAN_HOME") or os.environ.get("ELAN_HOME")
    path = Path(named) if named else Path.home() / ".elan"
    return path if (path / "toolchains").is_dir() else None


def _toolchain(program: str, search: str) -> list[Path]:
    """The programs and the library of the toolchain that `program` belongs to, if it lies in one (bin/, lib/lean/)."""
    found = shutil.which(program, path=search)
    root = Path(found).resolve().parent.parent if found else None
    return [root / "bin", root / "lib"] if root is not None and (root / "lib" / "lean").is_dir() else []
