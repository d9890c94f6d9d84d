"""The options of the verifier `lean` (`verifier.serve.lean.options`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, HttpUrl, SecretStr, model_validator

from broker.settings import Section
from verifier.builtin.confinement import SandboxSettings
from verifier.builtin.lean.assembly import Library

Command = Annotated[tuple[str, ...], Field(min_length=1)]


class LeanSettings(Section):
    """How Lean is reached and what a check may cost. One of the three back ends is chosen with `backend`."""

    backend: Literal["repl", "kimina", "command"] = "command"
    """`repl`: a pool of leanprover-community/repl processes; `kimina`: a Kimina Lean Server; `command`: one `lean` per
    check, for small set-ups."""
    project: Path | None = None
    """Lake project (with Mathlib built) in which the commands run. Not needed by `kimina`."""
    lean: Command = ("lake", "env", "lean")
    """`command`: what checks a file; `--json FILE` is added. Without a project: ("lean",)."""
    repl: Command = ("lake", "env", "repl")
    """`repl`: what starts one REPL; give the path of the binary if it is not on PATH inside the project."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Variables for the commands (LEAN_PATH, ELAN_HOME …) beside PATH, HOME and LANG; nothing else is handed on."""
    sandbox: SandboxSettings = SandboxSettings()
    """`command`: how it is confined. Toolchain and library belong to `sandbox.readable`; the project is added."""
    memory_bytes: Annotated[int, Field(ge=1 << 28)] = 12 << 30
    """Of one check (`command`); a REPL that has grown beyond it is replaced (`repl`)."""
    processes: Annotated[int, Field(ge=1, le=512)] = 1
    """`repl`: REPLs at once; make the queue's `concurrency` the same. `command`: checks at once. `kimina`: requests at
    once."""
    recycle: Annotated[int, Field(ge=1)] = 200
    """`repl`: checks after which a REPL is replaced: its environments only accumulate."""
    url: HttpUrl | None = None
    """`kimina`: the server, e.g. http://kimina:8000; `/api/check` is added."""
    key: SecretStr | None = None
    """`kimina`: bearer key."""
    batch: Annotated[int, Field(ge=1, le=256)] = 16
    """`kimina`: most snippets in one request; they gather while another request is under way."""
    seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Wall deadline of one check, beyond which it is `error`."""
    start_seconds: Annotated[float, Field(gt=0, le=3600)] = 300.0
    """`repl`: deadline of importing a header. `command` pays the import in every check: raise `seconds`."""
    heartbeats: Annotated[int, Field(ge=1000, le=10_000_000)] = 200_000
    """Lean's maxHeartbeats for a proof, beyond which it fails."""
    library: Library = "walk"
    """`trust`: do not look for axioms below imported theorems (only for libraries whose bodies are not at hand)."""
    axioms: frozenset[str] = frozenset({"propext", "Classical.choice", "Quot.sound"})
    """Axioms a proof may rest on; cannot be widened, only narrowed."""
    canary_header: str = ""
    """Imports under which the known-false statements are tried; default: none but Lean's own."""
    canary_seconds: Annotated[float, Field(gt=0)] = 900.0
    """At start, and then this often between checks, known-false statements are tried."""
    replay: tuple[str, ...] = ()
    """External checker asked after the first proof of each statement: a command that is given a file's path and exits
    with 0 (agrees), 1 (does not), anything else (trouble)."""
    replay_seconds: Annotated[float, Field(gt=0, le=3600)] = 600.0

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.backend == "kimina" and self.url is None:
            raise ValueError("backend kimina needs url")
        if self.backend == "kimina" and self.url is not None and (self.url.username or self.url.password):
            raise ValueError("url must not hold a password: give the key as `key`")
        if self.project is not None and not self.project.is_absolute():
            raise ValueError(f"project {self.project} must be an absolute path")
        if wide := self.axioms - {"propext", "Classical.choice", "Quot.sound"}:
            raise ValueError(f"axioms {sorted(wide)} would make more provable than is true; only narrowing is allowed")
        if not self.library == "walk" and self.backend == "kimina":
            raise ValueError("library = trust is for a `lean` whose library has no proof bodies; not for kimina")
        return self
