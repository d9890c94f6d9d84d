"""docs/reference/exit-codes.md: one table of exit codes, from broker/errors.py and the errors that carry them."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from broker import errors
from docs.generators.markdown import document, prose, table
from docs.generators.source import documented

ROOT = Path(__file__).parents[2]
PACKAGES = ("broker", "actor", "verifier", "learner", "deploy")
INTRODUCTION = """
What a `sieve` process ends with. The numbers are those of `sysexits.h` where one fits. An error is printed as one line
that names the value, the limit and the remedy; only code 70 comes with a traceback, in the log of the service. Every
error a person can meet is a subclass of `broker.errors.SieveError` and carries its code.
"""
RESTARTS = """
`sieve run` starts a service that ended again, except: after 64 and 76 the run ends at once; after another code than
69 and 75 it ends when the same service fails a second time in a row; after 69 and 75 it ends after
`launch.restart_limit` failures in a row. A service that was killed without a code is started again, and counts toward
that limit only while it never got to work. A supervisor of your own (Kubernetes, systemd) can do the same: 64, 65, 70,
73 and 76 need a person, 69 and 75 pass.
"""


def page() -> str:
    """The whole page."""
    meanings = documented(ast.parse(Path(errors.__file__).read_text(encoding="utf-8")).body)
    codes = {name: code for name, code in vars(errors).items() if name.startswith("EX_")}
    rows = [[f"{code}", f"`{name}`", meanings[name]] for name, code in sorted(codes.items(), key=lambda item: item[1])]
    rows += [["130", "", "Stopped by Ctrl-C; `sieve run CONFIG --resume` goes on."]]
    rows += [["143", "", "Stopped by SIGTERM; `sieve run CONFIG --resume` goes on."]]
    by_code = sorted((codes[constant], name, module, text) for name, module, constant, text in raised())
    return document(
        "Exit codes",
        "broker/errors.py",
        INTRODUCTION,
        [
            table(["code", "constant", "meaning"], rows),
            "## Restarts",
            prose(RESTARTS),
            "## Errors",
            table(["code", "error", "meaning"], [[f"{c}", f"`{m}.{n}`", text] for c, n, m, text in by_code]),
        ],
    )


def raised() -> list[tuple[str, str, str, str]]:
    """(class, module, constant of its exit code, first sentence of its docstring) of every subclass of SieveError.

    Read from source text: some of the modules need torch or vLLM to be imported.
    """
    classes: dict[str, tuple[str, list[str], str, str]] = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
                    text = " ".join(inspect.cleandoc(ast.get_docstring(node) or "").split())
                    sentence = re.split(r"(?<=[.:;])\s", text, maxsplit=1)[0].rstrip(":;.") + "."
                    if bases:
                        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
                        classes[node.name] = (module, bases, _code(node), sentence)

    def code_of(name: str) -> str | None:
        if name == "SieveError":
            return "EX_INTERNAL"
        if name not in classes:
            return None
        _, bases, own, _ = classes[name]
        inherited = next((code for code in map(code_of, bases) if code), None)
        return (own or inherited) if inherited else None

    found = [(name, module, code_of(name), text) for name, (module, _, _, text) in classes.items()]
    # A class that only groups others is never raised itself.
    return [(name, module, code, text) for name, module, code, text in found if code and not text.startswith("Base of")]


def _code(node: ast.ClassDef) -> str:
    """The constant in `exit_code = EX_…`; empty where the class inherits it."""
    for statement in node.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        value = getattr(statement, "value", None)
        if isinstance(target, ast.Name) and target.id == "exit_code" and isinstance(value, ast.Name):
            return value.id
    return ""
