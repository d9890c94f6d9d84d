"""The options of the verifier `lean` (`verifier.serve.lean.options` in the configuration)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, HttpUrl, SecretStr, model_validator

from broker.settings import Section
from verifier.builtin.confinement import SandboxSettings
from verifier.builtin.lean.assembly import AXIOMS, Library

Command = Annotated[tuple[str, ...], Field(min_length=1)]


class LeanSettings(Section):
    """How Lean is run and what a check may cost."""

    backend: Literal["repl", "kimina", "command"] = "command"
    """The back end. `repl`: a pool of leanprover-community/repl processes; `kimina`: a Kimina Lean Server; `command`:
    one `lean` process per check, for small set-ups."""
    project: Path | None = None
    """Lake project (with Mathlib built) in which the commands run. Not needed by `kimina`."""
    lean: Command = ("lake", "env", "lean")
    """`command`: the command that checks a file; `--json FILE` is appended. Without a project: ("lean",)."""
    repl: Command = ("lake", "env", "repl")
    """`repl`: the command that starts one REPL; give the binary's absolute path if it is not on PATH in the project."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables for the commands (LEAN_PATH …) besides PATH, ELAN_HOME, HOME and LANG; no others are passed on."""
    sandbox: SandboxSettings = SandboxSettings()
    """`repl` and `command`: how they are confined. They can read the system's programs, the project, elan's directory,
    the toolchain of a program on PATH and the files that the command names; list other libraries (those of LEAN_PATH,
    say) in `sandbox.readable`. They can write nowhere but in a directory of the run."""
    memory_bytes: Annotated[int, Field(ge=1 << 28)] = 12 << 30
    """`command`: memory of one check. `repl`: memory of one REPL; one that needs more is ended, and the check repeated
    in a new one if others came before it."""
    processes: Annotated[int, Field(ge=1, le=512)] = 1
    """`repl`: number of REPLs; set the queue's `concurrency` to the same number. `command`: concurrent checks.
    `kimina`: concurrent requests, at most as many as the server has REPLs for this process."""
    recycle: Annotated[int, Field(ge=1)] = 200
    """`repl`: checks after which a REPL is replaced, because its environments are never freed."""
    url: HttpUrl | None = None
    """`kimina`: URL of the server, e.g. http://kimina:8000; `/api/check` is appended."""
    key: SecretStr | None = None
    """`kimina`: bearer key."""
    batch: Annotated[int, Field(ge=1, le=256)] = 16
    """`kimina`: the most snippets in one request; they are collected while another request is under way."""
    repls: Annotated[int, Field(ge=1, le=4096)] = 1
    """`kimina`: how many of the server's REPLs (its LEAN_SERVER_MAX_REPLS) work for this process at least. A request of
    n snippets has n / repls times `seconds`. A check waits for `start_seconds` and two requests at most: set the
    queue's `deadline_seconds` above that."""
    seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Wall-clock deadline of one check, after which it is `error`."""
    start_seconds: Annotated[float, Field(gt=0, le=3600)] = 300.0
    """`repl` and `kimina`: deadline for importing a header. With `command` every check includes the import: raise
    `seconds`."""
    heartbeats: Annotated[int, Field(ge=1000, le=10_000_000)] = 200_000
    """Lean's maxHeartbeats for a proof, after which it fails."""
    library: Library = "walk"
    """`walk`: also collect axioms below imported theorems. `trust`: do not (only for libraries without proofs)."""
    axioms: frozenset[str] = AXIOMS
    """Axioms that a proof may rest on; can only be narrowed."""
    canary_header: str = ""
    """Imports under which the known-false statements are tried; default: Lean's own only."""
    canary_seconds: Annotated[float, Field(gt=0)] = 900.0
    """Interval between attempts at known-false statements; the first is at the start."""
    replay: tuple[str, ...] = ()
    """External checker, run after the first proof of each statement: a command that is given a file's path and exits
    with 0 (agrees), 1 (disagrees), or any other code (could not check)."""
    replay_seconds: Annotated[float, Field(gt=0, le=3600)] = 600.0
    """Deadline of the external checker."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.backend == "kimina" and self.url is None:
            raise ValueError("backend = kimina, but url is not set; give the server's URL")
        if self.backend == "kimina" and self.url is not None and (self.url.username or self.url.password):
            raise ValueError("url must not contain a password; give the key as `key`")
        if self.project is not None and not self.project.is_absolute():
            raise ValueError(f"project = {self.project}: must be an absolute path")
        if wide := self.axioms - AXIOMS:
            raise ValueError(f"axioms {sorted(wide)} would make more provable than is true; only narrowing is allowed")
        if not self.library == "walk" and self.backend == "kimina":
            raise ValueError("library = trust is for a `lean` whose library has no proofs; use walk with kimina")
        return self
