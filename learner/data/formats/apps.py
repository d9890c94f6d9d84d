"""APPS (Hendrycks et al., arXiv 2105.09938) and TACO (Li et al., arXiv 2312.14852), which took over its columns.

    question       text
    input_output   JSON text: {"inputs": […], "outputs": […], "fn_name"?: text}
    starter_code   text, may be missing

With `fn_name`, an input is the list of a call's arguments; without, stdin as text or a list of lines.
"""

from __future__ import annotations

from learner.data.formats.calls import calls, entry_of, paired, prompt_of, scripts
from learner.data.formats.fields import Converted, Fields, NotOfFormat, identifier, record_of


def convert(fields: Fields) -> Converted:
    """A row of APPS or TACO. Raises NotOfFormat."""
    where = "input_output"
    question, starter_code = fields.text("question"), fields.optional_text("starter_code")
    told = fields.json(where, {"inputs": [], "outputs": []})
    if not isinstance(told, dict):
        raise NotOfFormat(where, "is not an object with inputs and outputs: correct or remove the row")
    inputs, outputs, name = told.get("inputs"), told.get("outputs"), told.get("fn_name") or ""
    paired(where, inputs, outputs)
    if not name:
        return Converted(prompt_of(question, starter_code, ""), record_of(where, scripts(where, inputs, outputs)))
    identifier(where, name)
    tests, setup = calls(where, inputs, outputs)
    record = record_of(where, tests, entry_of(name, starter_code), setup)
    return Converted(prompt_of(question, starter_code, name), record)
