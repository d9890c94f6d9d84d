"""HumanEval (Chen et al., arXiv 2107.03374), and HumanEval+ with the same columns.

    prompt       the head of a module: imports, helpers, and the function's signature with its docstring
    entry_point  the function's name
    test         source that defines check(candidate)

The answer that is judged is a whole program, not a continuation of `prompt`.
"""

from __future__ import annotations

from learner.data.formats.fields import Converted, Fields, NotOfFormat, identifier, record_of
from learner.data.formats.source import defined, parsed, refuse_unbound


def convert(fields: Fields) -> Converted:
    """A row of HumanEval. The prompt is the setup, too, since the tests may use its helpers. Raises NotOfFormat."""
    prompt, test = fields.text("prompt"), fields.text("test")
    entry = identifier("entry_point", fields.text("entry_point"))
    given, checks = parsed("prompt", prompt), parsed("test", test)
    if "check" not in defined(checks):
        raise NotOfFormat("test", "does not define check(candidate): correct or remove the row")
    refuse_unbound("test", [checks, given], [entry, "candidate"])
    return Converted(prompt, record_of("test", [{"check": test}], entry, prompt))
