"""`sieve judge`: the verdict on one answer, or on a file of them, without Redis, a run or a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.errors import EX_DATA, EX_OK, UsageError
from broker.printable import one_line, printable
from deploy.cli.options import by_shell


def judge(
    verifier: Annotated[str, typer.Argument(help="The verifier's name: math, python, …", show_default=False)],
    options: Annotated[
        str, typer.Option(help="Its options, as JSON or YAML: what verifier.serve.NAME.options would hold.")
    ] = "{}",
    factory: Annotated[
        str | None,
        typer.Option(
            help="package.module:attribute of a verifier of your own, installed or in the working directory.",
            show_default=False,
        ),
    ] = None,
    record: Annotated[str | None, typer.Option(help="The record, as JSON.", show_default=False)] = None,
    answer: Annotated[
        str | None, typer.Option(help="The answer's text; - reads it from standard input.", show_default=False)
    ] = None,
    cases: Annotated[
        Path | None,
        typer.Option(
            help='A file of lines {"record": …, "answer": …}, each perhaps with another "verifier".',
            show_default=False,
            autocompletion=by_shell,
        ),
    ] = None,
) -> int:
    """Print the verdict on an answer, or on a file of them.

    One JSON object per case, in order: verdict (pass, fail or error), reason, answer, detail. Programs run at the
    sandbox level of this machine. Exit code 65 when a line of the file is no case.
    """
    if (cases is None) is (record is None or answer is None):
        raise UsageError("give --record and --answer, or --cases with a file of them")
    from deploy.config import search_path
    from verifier.protocol import Verifier, judged, make

    search_path.add([Path.cwd()])
    made: dict[str, Verifier] = {verifier: make(verifier, _options(options), factory=factory)}
    code = EX_OK
    for number, case in enumerate(_lines(cases) if cases is not None else [_single(record, answer)], 1):
        problem = _problem(case)
        if problem:
            typer.echo(one_line(f"sieve: {cases}: line {number}: {problem}"), err=True)
            line = {"verdict": "error", "reason": "malformed_case", "answer": "", "detail": problem}
            code = EX_DATA
        else:
            name = case.get("verifier", verifier)
            if name not in made:
                made[name] = make(name)
            said = judged(made[name], case["record"], case["answer"])
            line = {"verdict": said.outcome, "reason": said.reason, "answer": said.answer, "detail": said.detail}
        typer.echo(printable(json.dumps(line, ensure_ascii=False)))
    for one in made.values():
        close = getattr(one, "close", None)
        if close is not None:
            close()
    return code


def _options(text: str) -> dict[str, Any]:
    import yaml

    from deploy.config import yaml_text
    from deploy.config.errors import ConfigError

    try:
        found = yaml_text.parse(text)
    except (yaml.YAMLError, ConfigError) as error:
        raise UsageError(
            f"--options {text[:80]}: not JSON or YAML ({error}); write --options '{{key: value}}'"
        ) from None
    if not isinstance(found, dict):
        raise UsageError(f"--options {text[:80]}: not an object; write --options '{{key: value}}'")
    return found


def _single(record: str | None, answer: str | None) -> dict[str, Any]:
    import sys

    try:
        found = json.loads(record or "")
    except (ValueError, RecursionError) as error:
        raise UsageError(f'--record: not JSON ({error}); write --record \'{{"answer": "5"}}\'') from None
    return {"record": found, "answer": sys.stdin.read() if answer == "-" else answer}


def _lines(path: Path) -> Iterator[Any]:
    try:
        with path.open(encoding="utf-8") as file:
            for text in file:
                if text.strip():
                    try:
                        yield json.loads(text)
                    except (ValueError, RecursionError) as error:
                        yield f"not JSON ({error})"
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}; give a file of cases") from None


def _problem(case: Any) -> str:
    """Why `case` is none; empty if it is one."""
    if isinstance(case, str):
        return case
    if not isinstance(case, dict):
        return 'not an object; write {"record": {…}, "answer": "…"}'
    if not isinstance(case.get("record"), dict) or not isinstance(case.get("answer"), str):
        return "record must be an object and answer a text"
    if not isinstance(case.get("verifier", ""), str):
        return "verifier must be a text"
    return ""
