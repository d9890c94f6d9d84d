"""The option `sandbox` of the built-in verifiers that run programs, and the sandbox made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import field_validator

from broker.errors import EX_USAGE, SieveError
from broker.settings import Section
from verifier.sandbox import levels
from verifier.sandbox.limits import SandboxUnavailable
from verifier.sandbox.sandbox import Sandbox


class ConfinementUnavailable(SieveError, SandboxUnavailable):
    """Programs cannot be confined on this machine as asked; the message lists what was tried and the remedy."""

    exit_code = EX_USAGE


class SandboxSettings(Section):
    """Where programs run and how strictly they are confined."""

    level: Literal["auto", "bubblewrap", "landlock", "unsafe"] = "auto"
    """`auto`: the strongest level that works on this machine; without one the service does not start. `unsafe` (limits
    only: a program can read what this service can, and use the network) is never chosen automatically."""
    readable: tuple[Path, ...] = ()
    """Directories that programs may read besides what they need to run, under the same paths. A tree that holds this
    run's directory, prompts or model is refused: the service does not start."""
    directory: Path | None = None
    """Where the directories of the runs are made; default: the system's temporary directory."""

    @field_validator("readable", "directory")
    @classmethod
    def _there(cls, value: tuple[Path, ...] | Path | None) -> tuple[Path, ...] | Path | None:
        for path in value if isinstance(value, tuple) else (value,) if value is not None else ():
            if not path.is_absolute() or not path.is_dir():
                raise ValueError(f"{path} is not an absolute path of a directory on this machine")
            if path.resolve() == Path("/"):
                raise ValueError("/ would make everything readable; name the directories that programs need")
        return value

    def open(self, readable: tuple[Path, ...] = (), *, programs: bool = True) -> Sandbox:
        """A sandbox whose level has been tested by running a program; `programs`: the system's programs are readable,
        not only its shared libraries. Raises ConfinementUnavailable."""
        try:
            return levels.open_sandbox(
                self.level, readable=(*self.readable, *readable), programs=programs, directory=self.directory
            )
        except SandboxUnavailable as error:
            raise ConfinementUnavailable(str(error)) from error
