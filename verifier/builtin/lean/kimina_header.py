"""The text of a check as a Kimina Lean Server wants it: imports and checker in the header, the rest in the body.

The server's header is every line at the top of a snippet that begins with `import ` (split_snippet in its split.py). A
comment would end it, and the imports below would then be commands in the middle of a file. The rest of such a line
belongs to the header as well, although it need not be part of the import: Lean ends an import at its module's name. So
the checker follows `import Lean` on its line, each of its commands in a string that is parsed and elaborated. The
server replaces all lines that begin with `import Mathlib` by one `import Mathlib`.
"""

from __future__ import annotations

import re
from functools import cache

from verifier.builtin.lean.assembly import Check, checker, literal
from verifier.builtin.lean.backends import BackendTrouble
from verifier.builtin.lean.lexer import comment_end

PROBE = "open SieveCheck"
"""A body that Lean accepts only where the header was elaborated."""

_RUN = (
    'elab "#sieve_run " text:str : command => do { '
    'match Lean.Parser.runParserCategory (← Lean.getEnv) `command text.getString "<checker>" with '
    "| .ok stx => Lean.Elab.Command.elabCommand stx "
    "| .error error => throw (Lean.Exception.error text.raw (.ofFormat (.text error))) }"
)
"""The command `#sieve_run`, which elaborates the command in a string; on one line."""
_SHORT = ("namespace ", "open ", "end ", "set_option ", "section", "universe ", "variable ")
"""Commands of one line, which may stand in the checker without a blank line around them."""
_LEAN = "import Lean"
_MATHLIB = re.compile(r"import Mathlib(\..*)?")
_BREAKS = {ord(sign): f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"}
"""Characters that end a line for the server, but not for Lean, as escapes of Lean's strings."""


@cache
def load_checker() -> str:
    """The checker as one line, with each of its commands in a string."""
    return " ".join([_RUN, *(f"#sieve_run {literal(command)}" for command in commands(checker()))])


def commands(source: str) -> list[str]:
    """The commands of a Lean source in which a blank line, or a command of one line (_SHORT), separates any two.

    `mutual … end` is one command. A comment at the top of the source is left out.
    """
    found: list[str] = []
    lines: list[str] = []
    mutual = False
    start = comment_end(source, 0) if source.startswith("/-") else 0
    for line in source[start:].strip().split("\n"):
        if lines and not lines[-1].strip() and not mutual and line[:1].strip():
            found.append("\n".join(lines))
            lines = []
        lines.append(line)
        mutual = line == "mutual" or (mutual and line != "end")
        if line == "end" or (not mutual and line.startswith(_SHORT) and not line.endswith(" in")):
            found.append("\n".join(lines))
            lines = []
    return [command.strip() for command in [*found, "\n".join(lines)] if command.strip()]


def header(check: Check) -> str:
    """The server's header for a check. Raises BackendTrouble for imports that the server would replace by others."""
    imports = check.imports.splitlines()
    if strange := [line for line in imports if line.startswith("import Mathlib") and not _MATHLIB.fullmatch(line)]:
        raise BackendTrouble(
            "lean_output", f"a Kimina server takes {strange[0][:100]!r} for Mathlib: rename the module"
        )
    return "\n".join([*(line for line in imports if line != _LEAN), f"{_LEAN} {load_checker()}"])


def body(check: Check) -> str:
    """What follows the header of a check. Raises BackendTrouble for line ends that the server would replace."""
    rest = check.context.removeprefix(checker()).strip()
    if any(chr(sign) in rest for sign in _BREAKS):
        raise BackendTrouble("lean_output", "the header has a line end of Unicode, which a Kimina server replaces")
    return f"{rest}\n{check.command.translate(_BREAKS)}\n".lstrip()
