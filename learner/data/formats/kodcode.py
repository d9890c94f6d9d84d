"""KodCode (Xu et al., arXiv 2503.02951).

    question   text
    test       source of pytest functions that import the function to be tested from `solution`
    test_info  [{"function_name", "function_declaration", …}]; may be missing
    solution   the reference solution; may be missing

Each test function becomes one check; `pytest_subset` stands in for pytest. Tests of classes or of several functions
cannot be judged, and fixtures are not understood: both are refused.
"""

from __future__ import annotations

import ast
import inspect
from typing import Any

from learner.data.formats import pytest_subset
from learner.data.formats.fields import Converted, Fields, NotOfFormat, identifier, record_of
from learner.data.formats.source import FUNCTION, parsed, read, refuse_unbound, unparsed

_FIELD = "test"
_IMPORTABLE = {"approx", "raises", "fail"}
_KNOWN = _IMPORTABLE | {"param", "mark", "mark.parametrize"}


def convert(fields: Fields) -> Converted:
    """A row of KodCode. Raises NotOfFormat."""
    try:
        return _converted(fields)
    except RecursionError:
        raise NotOfFormat(_FIELD, "is nested too deep to be taken apart: remove the row") from None


def _converted(fields: Fields) -> Converted:
    question, tree = fields.text("question"), parsed(_FIELD, fields.text(_FIELD))
    info = fields.json("test_info", [])
    told = [one for one in info if isinstance(one, dict)] if isinstance(info, list) else []
    imports = _Imports([str(one.get("function_name")) for one in told])
    tree = imports.visit(tree)
    entry, names = _entry(tree, imports.names)
    _refuse_class(entry, parsed("solution", fields.optional_text("solution")))

    shared: list[ast.stmt] = []
    functions: list[ast.FunctionDef] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            functions.append(node)
        elif isinstance(node, (ast.ClassDef, ast.AsyncFunctionDef)) and node.name.lower().startswith("test"):
            raise NotOfFormat(_FIELD, f"has the tests {node.name}, and only functions are run: remove the row")
        elif not isinstance(node, (ast.Pass, ast.If)) or (isinstance(node, ast.If) and not _is_main(node)):
            shared.append(node)
    if not any(read(node) & names for node in shared):
        # A test that never calls the function says nothing about an answer.
        functions = [function for function in functions if read(function) & names]
    sources: list[str] = []
    for function in functions:
        _refuse_fixtures(function)
        sources.append(f"{unparsed(_FIELD, [function])}\n{function.name}()\n")
    judged = [*shared, *functions]
    _refuse_pytest(judged)
    refuse_unbound(_FIELD, judged, {*names, "candidate", "pytest"})
    return Converted(_prompt(question, entry, told), _record(shared, sources, entry, names))


def _record(shared: list[ast.stmt], sources: list[str], entry: str, names: set[str]) -> dict[str, Any]:
    """Helpers are the setup, unless they use the function, which is there from the check on."""
    helpers = unparsed(_FIELD, shared)
    setup = inspect.getsource(pytest_subset) if any("pytest" in source for source in [*sources, helpers]) else ""
    if any(isinstance(node, (*FUNCTION, ast.ClassDef)) and node.name == "check" for node in shared):
        raise NotOfFormat(
            _FIELD, "has a helper named check, which the verifier would call: rename it or remove the row"
        )
    before = "".join(f"{name} = candidate\n" for name in sorted(names - {entry}))
    if any(read(node) & names for node in shared):
        before += f"{helpers}\n"
    elif helpers:
        setup += f"{helpers}\n"
    return record_of(_FIELD, [{"check": before + source} for source in sources], entry, setup)


def _prompt(question: str, entry: str, told: list[dict[str, Any]]) -> str:
    """The question; and the function's declaration, without which its name would have to be guessed."""
    if entry in question:
        return question
    declared = next((one.get("function_declaration") for one in told if one.get("function_name") == entry), None)
    declaration = declared if isinstance(declared, str) and declared.strip() else f"def {entry}(...):"
    return f"{question.rstrip()}\n\nThe function is declared as follows:\n\n```python\n{declaration.strip()}\n```\n"


class _Imports(ast.NodeTransformer):
    """Removes the imports of `solution` and of pytest. `names` is what came from the solution: name → name there."""

    def __init__(self, declared: list[str]) -> None:
        self.names: dict[str, str] = {}
        self._declared = declared

    def visit_Import(self, node: ast.Import) -> ast.stmt:
        if any(one.name.partition(".")[0] == "solution" for one in node.names):
            raise NotOfFormat(_FIELD, "imports solution as a module, not a function from it: correct or remove the row")
        if any(
            one.name.partition(".")[0] == "pytest" and (one.name, one.asname) != ("pytest", None) for one in node.names
        ):
            raise NotOfFormat(_FIELD, "imports pytest by another name: correct or remove the row")
        node.names = [one for one in node.names if one.name != "pytest"]
        return node if node.names else ast.Pass()

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt:
        package = (node.module or "").partition(".")[0]
        if package == "pytest":
            return self._from_pytest(node)
        if package != "solution":
            return node
        for one in node.names:
            if one.name == "*":
                self.names.update({name: name for name in self._declared})
            else:
                self.names[one.asname or one.name] = one.name
        return ast.Pass()

    @staticmethod
    def _from_pytest(node: ast.ImportFrom) -> ast.stmt:
        """Assignments of the same names in place of the import."""
        unknown = sorted({one.name for one in node.names} - _IMPORTABLE)
        if unknown:
            raise NotOfFormat(_FIELD, f"imports {unknown[0]} from pytest, which is not known: remove the row")
        targets: list[ast.expr] = [ast.Name(one.asname or one.name, ast.Store()) for one in node.names]
        values: list[ast.expr] = [
            ast.Attribute(ast.Name("pytest", ast.Load()), one.name, ast.Load()) for one in node.names
        ]
        return ast.Assign([ast.Tuple(targets, ast.Store())], ast.Tuple(values, ast.Load()))


def _entry(tree: ast.AST, imported: dict[str, str]) -> tuple[str, set[str]]:
    """(the function under test, the names that the tests have for it)."""
    used = {name: imported[name] for name in sorted(read(tree)) if name in imported}
    entries = set(used.values())
    if len(entries) != 1:
        what = f"uses {', '.join(sorted(entries))[:100] or 'no name'} from solution"
        raise NotOfFormat(_FIELD, f"{what}, expected one function: remove the row")
    return identifier(_FIELD, entries.pop()), set(used)


def _refuse_class(entry: str, solution: ast.Module) -> None:
    if any(isinstance(node, ast.ClassDef) and node.name == entry for node in solution.body):
        raise NotOfFormat(_FIELD, f"tests the class {entry}, and only functions can be judged: remove the row")


def _refuse_fixtures(function: ast.FunctionDef) -> None:
    """Raise NotOfFormat for parameters that no parametrize gives, and for decorators besides it."""
    given: set[str] = set()
    for decorator in function.decorator_list:
        if not isinstance(decorator, ast.Call) or _dotted(decorator.func) != "pytest.mark.parametrize":
            raise NotOfFormat(
                _FIELD, f"decorates {function.name} with other than pytest.mark.parametrize: remove the row"
            )
        try:
            names = ast.literal_eval(decorator.args[0])
        except (ValueError, IndexError, TypeError, RecursionError, MemoryError):
            names = ""
        given.update(name.strip() for name in (names.split(",") if isinstance(names, str) else map(str, names)))
    arguments = function.args
    optional = len(arguments.defaults)
    positional = [*arguments.posonlyargs, *arguments.args]
    needed = {one.arg for one in positional[: len(positional) - optional]} | {one.arg for one in arguments.kwonlyargs}
    if needed - given:
        raise NotOfFormat(
            _FIELD, f"has fixtures ({', '.join(sorted(needed - given))[:80]}), which are not known: remove the row"
        )


def _refuse_pytest(nodes: list[ast.stmt]) -> None:
    """Raise NotOfFormat for names of pytest that pytest_subset has not."""
    for top in nodes:
        for node in ast.walk(top):
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, (ast.Name, ast.Attribute)):
                continue
            name = _dotted(node)
            if name.startswith("pytest.") and name.removeprefix("pytest.") not in _KNOWN:
                raise NotOfFormat(_FIELD, f"uses {name}, which is not known: remove the row")


def _is_main(node: ast.If) -> bool:
    return "__name__" in read(node.test)


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""
