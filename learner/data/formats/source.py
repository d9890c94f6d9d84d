"""Source of tests and solutions that comes with a row: parsed to find names, never run."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable

from learner.data.formats.fields import NotOfFormat

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def parsed(field: str, source: str) -> ast.Module:
    """The syntax tree of `source`. Raises NotOfFormat if it is not Python."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NotOfFormat(field, f"is not Python ({str(error)[:200]}): correct or remove the row") from None


def unparsed(field: str, statements: list[ast.stmt]) -> str:
    """Source of `statements`. Raises NotOfFormat where their nesting is too deep to write."""
    try:
        return ast.unparse(ast.fix_missing_locations(ast.Module(body=statements, type_ignores=[])))
    except (ValueError, RecursionError) as error:
        raise NotOfFormat(field, f"cannot be written out again ({str(error)[:200]}): remove the row") from None


def defined(tree: ast.Module) -> set[str]:
    """Names of the functions at the top of a module."""
    return {node.name for node in tree.body if isinstance(node, FUNCTION)}


def called(tree: ast.AST) -> set[str]:
    """Names that are called as functions."""
    return {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def read(tree: ast.AST) -> set[str]:
    """Names whose values are read."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def bound(tree: ast.AST) -> set[str]:
    """Names that are given a value anywhere: assigned, defined, imported, or taken as a parameter."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, (*FUNCTION, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            found.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            found.add(node.rest)
    return found


def refuse_unbound(field: str, trees: Iterable[ast.AST], given: Iterable[str]) -> None:
    """Raise NotOfFormat if `trees` read a name that neither they, `given` nor Python defines.

    Such a name is of the reference solution (a class, a second function), which the judging process does not have.
    """
    trees = list(trees)
    known = set(dir(builtins)) | {"__name__", "__file__"} | set(given)
    for tree in trees:
        known |= bound(tree)
    unknown = sorted(set().union(*map(read, trees)) - known)
    if unknown and "*" not in known:
        raise NotOfFormat(
            field, f"uses {unknown[0]!r}, which only a solution defines and no test can be given: remove the row"
        )
