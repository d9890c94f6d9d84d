"""LiveCodeBench (Jain et al., arXiv 2403.07974), `code_generation` and `code_generation_lite`.

    question_content    text
    starter_code        text, empty for programs
    public_test_cases   JSON text: [{"input": text, "output": text, "testtype": "stdin" | "functional"}, …]
    private_test_cases  the same, or base64 of zlib of a pickle of that text
    metadata            JSON text: {"func_name": text}, for functions

The input of a function has one JSON value per line. The pickle is read opcode by opcode and must hold one text and
nothing else; nothing is unpickled.
"""

from __future__ import annotations

import base64
import binascii
import pickletools
import zlib
from typing import Any

from learner.data.formats.calls import calls, entry_of, prompt_of, scripts
from learner.data.formats.fields import Converted, Fields, NotOfFormat, identifier, json_of, record_of, text_of

MAX_BYTES = 64 << 20
"""Largest private tests, before and after decompression: more than the largest message that the broker can carry."""
_TEXT = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_BESIDES = {"PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP"}
_TYPES = {"stdin", "functional"}


def convert(fields: Fields) -> Converted:
    """A row of LiveCodeBench. Raises NotOfFormat."""
    question, starter_code = fields.text("question_content"), fields.optional_text("starter_code")
    tests: list[dict[str, Any]] = []
    name = entry = setup = ""
    for where, cases in (
        ("public_test_cases", fields.json("public_test_cases", [])),
        ("private_test_cases", _private(fields)),
    ):
        called, printed = _by_type(where, cases)
        if called and not name:
            metadata = fields.json("metadata", {})
            name = identifier("metadata", metadata.get("func_name") if isinstance(metadata, dict) else None)
            entry = entry_of(name, starter_code)
        inputs = [
            [json_of(where, line) for line in _text(where, test, "input").split("\n") if line.strip()]
            for test in called
        ]
        outputs = [json_of(where, _text(where, test, "output")) for test in called]
        more, needed = calls(where, inputs, outputs, apps=False)
        tests += more
        setup = setup or needed
        tests += scripts(
            where,
            [_text(where, test, "input") for test in printed],
            [_text(where, test, "output") for test in printed],
        )
    record = record_of("private_test_cases", tests, entry, setup)
    return Converted(prompt_of(question, starter_code, name), record)


def _by_type(where: str, cases: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(functional tests, stdin tests)."""
    if not isinstance(cases, list):
        raise NotOfFormat(where, "is not a list of tests: correct or remove the row")
    for test in cases:
        if not isinstance(test, dict) or not isinstance(test.get("testtype"), str) or test["testtype"] not in _TYPES:
            raise NotOfFormat(where, "has a test whose testtype is neither stdin nor functional: remove the row")
    functional = [test for test in cases if test["testtype"] == "functional"]
    return functional, [test for test in cases if test["testtype"] == "stdin"]


def _text(where: str, test: dict[str, Any], name: str) -> str:
    return text_of(f"{where}.{name}", test.get(name))


def _private(fields: Fields) -> Any:
    where = "private_test_cases"
    try:
        text = fields.text(where).strip()
    except NotOfFormat:
        return fields.json(where, [])  # a list already, or missing
    if not text or text.startswith("["):
        return fields.json(where, [])
    return json_of(where, _unpacked(where, text))


def _unpacked(where: str, text: str) -> str:
    """The text in base64 of zlib of its pickle. Raises NotOfFormat."""
    if len(text) > MAX_BYTES:
        raise NotOfFormat(where, f"has {len(text)} bytes, at most {MAX_BYTES}: remove the row")
    try:
        stream = zlib.decompressobj()
        packed = stream.decompress(base64.b64decode(text, validate=True), MAX_BYTES + 1)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise NotOfFormat(
            where, f"is neither JSON nor base64 of zlib of a pickle ({error}): correct or remove the row"
        ) from None
    if len(packed) > MAX_BYTES:
        raise NotOfFormat(where, f"decompresses to more than {MAX_BYTES} bytes: remove the row")
    if not stream.eof:
        raise NotOfFormat(where, "is compressed data that is cut off: load the file again, or remove the row")
    found: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(packed):
            if opcode.name in _TEXT:
                found.append(str(argument))
            elif opcode.name not in _BESIDES:
                raise NotOfFormat(
                    where, f"is a pickle with {opcode.name}, and only one text is read from it: remove the row"
                )
    except (ValueError, IndexError, OverflowError, MemoryError) as error:
        raise NotOfFormat(where, f"is not a pickle ({str(error)[:200]}): correct or remove the row") from None
    if len(found) != 1:
        raise NotOfFormat(where, f"is a pickle of {len(found)} texts, expected one: remove the row")
    return text_of(where, found[0])
