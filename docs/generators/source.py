"""Docstrings of attributes and constants, read from source text.

Pydantic can do this itself (`use_attribute_docstrings`), but then every process that imports the settings parses their
source at start: 0.1 s more for every `sieve --help` and every pod. Here only the generator pays.
"""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path


@cache
def _parsed(path: str) -> ast.Module:
    return ast.parse(Path(path).read_text(encoding="utf-8"))


def documented(body: list[ast.stmt]) -> dict[str, str]:
    """Docstrings that follow an assignment in `body`, by the assigned name."""
    found = {}
    for statement, after in pairwise(body):
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        if (
            isinstance(target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            found[target.id] = inspect.cleandoc(after.value.value)
    return found


def attribute_docstrings(owner: type) -> dict[str, str]:
    """The docstring below each attribute of a class, inherited ones included."""
    found: dict[str, str] = {}
    for base in reversed(owner.__mro__):
        module = sys.modules.get(base.__module__)
        file = getattr(module, "__file__", None)
        if file is None or not file.endswith(".py") or base.__module__.startswith("pydantic"):
            continue
        for node in _parsed(file).body:
            if isinstance(node, ast.ClassDef) and node.name == base.__name__:
                found |= documented(node.body)
    return found


def class_docstring(owner: type) -> str:
    """The class's own docstring; empty when it has none (an inherited one describes another class)."""
    return inspect.cleandoc(owner.__dict__.get("__doc__") or "")
