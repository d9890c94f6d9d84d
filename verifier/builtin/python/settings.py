"""The options of the verifier `python` (`verifier.serve.python.options` in the configuration)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from broker.settings import Section
from verifier.builtin.confinement import SandboxSettings
from verifier.sandbox.limits import Limits, MiB


class PythonOptions(Section):
    """How programs are run and what each may use."""

    sandbox: SandboxSettings = SandboxSettings()
    interpreter: Path | None = None
    """The Python that runs programs; unset: this service's own if it runs in the sandbox, else the system's."""
    import_from: tuple[Path, ...] = ()
    """Directories of packages that programs may import, besides the standard library."""
    fence: Literal["last", "first"] = "last"
    """Which fenced block of an answer is its program."""
    prelude: Annotated[str, Field(max_length=16_384)] = ""
    """Python source that runs in the namespace of every program before it, such as `from typing import *`."""
    seconds_per_test: Annotated[float, Field(ge=0.1, le=3600)] = 5.0
    """Limit of one test: of wall time without starvation, and of CPU time where each test has its own process."""
    seconds: Annotated[float, Field(ge=0.1, le=86_400)] = 25.0
    """Limit of wall time for all tests of one answer. On a busy machine a verdict may take four times as long: keep the
    queue's deadline_seconds above that."""
    memory_mib: Annotated[int, Field(ge=64, le=1 << 20)] = 512
    """Memory of a program, MiB."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 16
    """Threads besides the main one; other processes cannot be started."""
    output_bytes: Annotated[int, Field(ge=1024, le=64 * MiB)] = 1 * MiB
    """Limit of stdout, of stderr, and of one returned value as JSON, each."""
    disk_mib: Annotated[int, Field(ge=0, le=1 << 20)] = 16
    """Disk space of a program, MiB; also the size of its largest file."""
    program_bytes: Annotated[int, Field(ge=1, le=1 * MiB)] = 64 << 10
    """The largest program; a longer one fails."""

    @field_validator("prelude")
    @classmethod
    def _is_python(cls, source: str) -> str:
        try:
            compile(source, "prelude", "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"is not Python: {error}") from None
        return source

    @model_validator(mode="after")
    def _consistent(self) -> PythonOptions:
        if self.seconds < self.seconds_per_test:
            raise ValueError(
                f"seconds = {self.seconds:g} is less than seconds_per_test = {self.seconds_per_test:g}: one test could "
                "take longer than all together; raise seconds or lower seconds_per_test"
            )
        if self.interpreter is not None and not os.access(self.interpreter, os.X_OK):
            raise ValueError(f"interpreter = {self.interpreter} cannot be executed; give the path of a python3")
        for path in self.import_from:
            if not path.is_absolute() or not path.is_dir():
                raise ValueError(f"import_from holds {path}, which is not an absolute path of a directory here")
        return self

    def limits(self, wall_seconds: float) -> Limits:
        """The sandbox limits of one process."""
        return Limits(
            wall_seconds=wall_seconds,
            cpu_seconds=wall_seconds,
            memory_bytes=self.memory_mib * MiB,
            threads=self.threads,
            output_bytes=self.output_bytes,
            file_bytes=self.disk_mib * MiB,
            disk_bytes=self.disk_mib * MiB,
        )
