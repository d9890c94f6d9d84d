"""docs/reference/exit-codes.md: one table of exit codes, from broker/errors.py and the errors that carry them."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from broker import errors
from docs.generators.markdown import document, prose, table
from docs.generators.source import documented

ROOT = Path(__file__).parents[2]
CLASS = re.compile(r"^class (\w+)\(([^)]*)\):", re.M)
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


@cache
def raised() -> list[tuple[str, str, str, str]]:
    """(class, module, constant of its exit code, first sentence of its docstring) of every subclass of SieveError.

    Read from source text: some of the modules need torch or vLLM to be imported.
    """
    parents: dict[str, list[str]] = {}
    sources: dict[str, Path] = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            for name, bases in CLASS.findall(file.read_text(encoding="utf-8")):
                parents[name], sources[name] = re.findall(r"\w+", bases), file

    derived = {"SieveError"}
    while more := {name for name, bases in parents.items() if derived.intersection(bases)} - derived:
        derived |= more
    classes = {name: _definition(sources[name], name) for name in sources if name in derived}

    def code_of(name: str) -> str:
        inherited = (code_of(base) for base in parents[name] if base in classes)
        return _code(classes[name]) or next(inherited, "EX_INTERNAL")

    found = []
    for name, node in classes.items():
        text = " ".join((ast.get_docstring(node) or "").split())
        sentence = re.split(r"(?<=[.:;])\s", text, maxsplit=1)[0].rstrip(":;.") + "."
        if not sentence.startswith("Base of"):  # such a class only groups others and is never raised itself
            found.append(
                (name, ".".join(sources[name].relative_to(ROOT).with_suffix("").parts), code_of(name), sentence)
            )
    return found


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _definition(file: Path, name: str) -> ast.ClassDef:
    return next(node for node in _tree(file).body if isinstance(node, ast.ClassDef) and node.name == name)


def _code(node: ast.ClassDef) -> str:
    """The constant in `exit_code = EX_…`; empty where the class inherits it."""
    for statement in node.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        value = getattr(statement, "value", None)
        if isinstance(target, ast.Name) and target.id == "exit_code" and isinstance(value, ast.Name):
            return value.id
    return ""
