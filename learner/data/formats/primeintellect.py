"""The verifiable coding problems of PrimeIntellect's SYNTHETIC-1.

    prompt             text, which says itself in what form to answer
    verification_info  JSON text: {"language": "python", "test_cases": [{"type", "fn_name"?, "input", "output"}, …]}

The type of a test is `stdin_stdout` or `function_call`. Outputs of calls are wrapped as in APPS, where many come from.
"""

from __future__ import annotations

from typing import Any

from learner.data.formats.calls import calls, entry_of, scripts
from learner.data.formats.fields import Converted, Fields, NotOfFormat, identifier, record_of

_LANGUAGES = {"python", "python3", "py"}


def convert(fields: Fields) -> Converted:
    """A row of PrimeIntellect's problems. Raises NotOfFormat."""
    where = "verification_info"
    prompt, told = fields.text("prompt"), fields.json(where, {})
    if not isinstance(told, dict) or not isinstance(told.get("test_cases", []), list):
        raise NotOfFormat(where, "is not an object with a list of test_cases: correct or remove the row")
    language = told.get("language", "python")
    if not isinstance(language, str) or language.lower() not in _LANGUAGES:
        raise NotOfFormat(where, f"is for the language {str(language)[:40]!r}, and only Python is run: remove the row")
    called: list[dict[str, Any]] = []
    printed: list[dict[str, Any]] = []
    for test in told.get("test_cases", []):
        kind = test.get("type") if isinstance(test, dict) else None
        if kind not in ("function_call", "stdin_stdout") or not {"input", "output"} <= test.keys():
            raise NotOfFormat(
                where,
                "has a test case that is neither stdin_stdout nor function_call with input and output: remove the row",
            )
        (called if kind == "function_call" else printed).append(test)
    tests, setup = calls(where, [test["input"] for test in called], [test["output"] for test in called])
    tests += scripts(where, [test["input"] for test in printed], [test["output"] for test in printed])
    names = {identifier(where, test.get("fn_name")) for test in called}
    if len(names) > 1:
        raise NotOfFormat(where, f"calls the functions {', '.join(sorted(names))[:200]}, at most one: remove the row")
    entry = "".join(entry_of(name, prompt) for name in names)
    return Converted(prompt, record_of(where, tests, entry, setup))
