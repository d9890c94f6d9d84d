"""MBPP (Austin et al., arXiv 2108.07732), full and sanitized.

text, or prompt       the task
code                  the reference solution, which tells the name of the function
test_list             list of asserts; the task shows them, since only they name the function
challenge_test_list   more of them, not shown; may be missing
test_setup_code       source, full set; may be missing
test_imports          list of import statements, sanitized set; may be missing
"""

from __future__ import annotations

import ast
import builtins

from learner.data.formats.fields import Converted, Fields, NotOfFormat, record_of
from learner.data.formats.source import bound, called, defined, parsed, refuse_unbound


def convert(fields: Fields) -> Converted:
    """A row of MBPP. Raises NotOfFormat."""
    where = "test_list"
    task, shown, hidden = fields.text("text", "prompt"), fields.texts(where), fields.texts("challenge_test_list")
    code = parsed("code", fields.optional_text("code"))
    setup = "\n".join([*fields.texts("test_imports"), fields.optional_text("test_setup_code")]).strip()
    given = parsed("test_setup_code", setup)
    tests = [*(parsed(where, test) for test in shown), *(parsed("challenge_test_list", test) for test in hidden)]
    if not shown:
        raise NotOfFormat(where, "has no tests, so that no answer can be judged: remove the row")
    entry = _entry(tests, code, given)
    refuse_unbound(where, [*tests, given], [entry])
    prompt = "\n".join([task.rstrip(), "Your code should pass these tests:", "", *shown]) + "\n"
    return Converted(prompt, record_of(where, [{"check": test} for test in [*shown, *hidden]], entry, setup))


def _entry(tests: list[ast.Module], code: ast.Module, setup: ast.Module) -> str:
    """The function that every test calls: one that `code` defines, or without code, one that nothing else does."""
    common = set.intersection(*map(called, tests)) - bound(setup)
    names = common & defined(code) if code.body else common - set(dir(builtins))
    if len(names) != 1:
        what = f"call {len(names)} functions of the solution in common"
        raise NotOfFormat("test_list", f"{what}, expected one: correct or remove the row")
    return names.pop()
