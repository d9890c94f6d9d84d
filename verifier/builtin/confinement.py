"""The option `sandbox` of the built-in verifiers that run programs, and the sandbox made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import field_validator

from broker.errors import EX_USAGE, SieveError
from broker.settings import Section
from verifier.sandbox import ladder
from verifier.sandbox.limits import SandboxUnavailable
from verifier.sandbox.sandbox import Sandbox


class ConfinementUnavailable(SieveError, SandboxUnavailable):
    """Programs cannot be confined on this machine as asked; the message holds what was tried and the remedy."""

    exit_code = EX_USAGE


class SandboxSettings(Section):
    """Where and how strictly programs run."""

    level: Literal["auto", "bubblewrap", "landlock", "unsafe"] = "auto"
    """`auto`: the strongest that works on this machine, or none. `unsafe` (limits only: such a program can read what
    this service can, and use the network) is never chosen by itself."""
    readable: tuple[Path, ...] = ()
    """Directories that programs may read beside the system's own, under the same path."""
    directory: Path | None = None
    """Where the directories of the runs are made; default: the system's temporary directory."""

    @field_validator("readable", "directory")
    @classmethod
    def _there(cls, value: tuple[Path, ...] | Path | None) -> tuple[Path, ...] | Path | None:
        for path in value if isinstance(value, tuple) else (value,) if value is not None else ():
            if not path.is_absolute() or not path.is_dir():
                raise ValueError(f"{path} is not an absolute path of a directory on this machine")
            if path.resolve() == Path("/"):
                raise ValueError("/ would show programs everything; name the directories they need")
        return value

    def open(self, readable: tuple[Path, ...] = ()) -> Sandbox:
        """The sandbox, its level proved by running something. Raises ConfinementUnavailable."""
        try:
            return ladder.climb(self.level, readable=(*self.readable, *readable), directory=self.directory)
        except SandboxUnavailable as error:
            raise ConfinementUnavailable(str(error)) from error
