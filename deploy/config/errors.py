"""The error of a configuration that cannot be used. Imports nothing heavy, for the command line to catch it."""

from __future__ import annotations

from collections.abc import Iterable

from broker.errors import EX_USAGE, SieveError, redact
from broker.printable import one_line


class ConfigError(SieveError):
    """Settings that cannot be used; `problems` holds one line for each."""

    exit_code = EX_USAGE

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(one_line(redact(problem)) for problem in problems)
        super().__init__(" | ".join(self.problems))
