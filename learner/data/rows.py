"""Rows of prompt files: JSONL, Parquet or a `datasets` name, mapped to prompt, verifier and record as the settings say:
by their columns, or by the converter of a public data set's format.

Every error names the file, the row and the column, and what to change. Imports neither torch nor transformers, because
`sieve config` reads the first rows with it. Tokenises nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from broker.errors import EX_DATA, SieveError
from broker.plain_files import check_plain, open_plain
from broker.settings import ColumnSettings, DataSettings, PromptSource
from learner.data.formats import registry
from learner.data.formats.fields import NotOfFormat

FIELDS = {"prompt": str, "verifier": str, "record": dict}
_KINDS: dict[type, str] = {str: "text", dict: "an object"}


class DataUnusable(SieveError):
    """A prompt file cannot be used as it is."""

    exit_code = EX_DATA


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt before it is tokenised; `where` names its file and row for errors."""

    where: str
    prompt: str | list[dict[str, Any]]
    """Text, or chat messages."""
    verifier: str
    record: dict[str, Any]


def rows(source: PromptSource, data: DataSettings) -> Iterator[Row]:
    """The rows of `source`, in order, mapped by `data`. Raises DataUnusable at the first one that cannot be used."""
    for where, word, body in _bodies(source):
        yield _mapped(where, word, body, data)


def pass_rates(source: PromptSource, data: DataSettings) -> Iterator[float]:
    """The base model's pass rate that came with each row, in order. Raises DataUnusable at the first without one."""
    for where, word, body in _bodies(source):
        value = _found(where, word, body, data.columns.pass_rate)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise DataUnusable(
                f"{where}: {word} {data.columns.pass_rate!r} is {str(value)[:40]!r}, expected a pass rate from 0 to 1"
            )
        yield float(value)


def count(source: PromptSource, most: int) -> int | None:
    """Number of rows, not counted beyond `most`; None if telling would need a download. Raises DataUnusable."""
    if isinstance(source, str):
        return None
    if source.suffix == ".parquet":
        return min(most, int(_parquet(source).metadata.num_rows))
    return sum(1 for _ in zip(range(most), _json_lines(source), strict=False))


def _bodies(source: PromptSource) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(file and row, what its parts are called, row)."""
    if isinstance(source, str):
        for number, body in enumerate(_dataset(source), 1):
            yield f"{source}: row {number}", "column", body
    elif source.suffix == ".parquet":
        number = 0
        for batch in _parquet(source).iter_batches(batch_size=512):
            for body in batch.to_pylist():
                number += 1
                yield f"{source}: row {number}", "column", body
    else:
        for number, body in _json_lines(source):
            yield f"{source}:{number}", "field", body


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object); blank lines are skipped."""
    try:
        with open_plain(path) as file:
            text = file.read().decode("utf-8")
    except FileNotFoundError:
        raise DataUnusable(f"{path}: no such file; set data.train and data.eval to prompt files") from None
    except UnicodeDecodeError as error:
        raise DataUnusable(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except OSError as error:
        raise DataUnusable(f"{path}: {error.strerror}; give a readable file") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            body = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataUnusable(f"{path}:{number}: not JSON ({error}); write one object a line") from None
        if not isinstance(body, dict):
            raise DataUnusable(f"{path}:{number}: {type(body).__name__}, expected an object with {', '.join(FIELDS)}")
        yield number, body


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataUnusable(f"{path}: reading Parquet needs pyarrow: pip install 'sieve-rl[parquet]'") from None
    try:
        check_plain(path)
        return ParquetFile(path)
    except FileNotFoundError:
        raise DataUnusable(f"{path}: no such file; set data.train and data.eval to prompt files") from None
    except (OSError, ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataUnusable(f"{path}: not a Parquet file ({reason}); give one, or name it *.jsonl") from None


def _dataset(name: str) -> Any:
    """The rows of a dataset loaded by name, from the Hub, its cache, or a directory of that relative path."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataUnusable(f"{name}: loading by name needs datasets: pip install 'sieve-rl[datasets]'") from None
    repository, _, split = name.removeprefix("datasets:").partition(":")
    repository, _, revision = repository.partition("@")
    parts = repository.split("/")
    configuration = parts[2] if len(parts) == 3 else None
    try:
        return load_dataset("/".join(parts[:2]), configuration, split=split, revision=revision or None)
    except Exception as error:  # of a foreign library about foreign files; scripts are refused with RuntimeError
        reason = " ".join(str(error).split())[:300]
        raise DataUnusable(
            f"{name}: datasets cannot load it ({type(error).__name__}: {reason}); check the name, the configuration "
            f"and the split, or save the rows as *.parquet or *.jsonl and name that file"
        ) from None


def _mapped(where: str, word: str, body: dict[str, Any], data: DataSettings) -> Row:
    columns = data.columns
    prompt: str | list[dict[str, Any]]
    if data.format is not None:
        try:
            converted = registry.convert(data.format, body)
        except NotOfFormat as error:
            raise DataUnusable(f"{where}: {word} {error}") from None
        prompt, verifier = converted.prompt, data.verifier or registry.VERIFIER
        record = _portable(where, word, "record", converted.record)
    else:
        prompt = _prompt(where, word, body, columns, data.chat.enabled)
        verifier = data.verifier or _typed(where, word, body, columns.verifier, str)
        record = _record(where, word, body, columns.record)
    twice = sorted(record.keys() & data.record_constants.keys())
    if twice:
        raise DataUnusable(f"{where}: record has {twice[0]!r} already; remove it from data.record_constants")
    return Row(where, prompt, verifier, {**record, **data.record_constants})


def _prompt(
    where: str, word: str, body: dict[str, Any], columns: ColumnSettings, chat: bool
) -> str | list[dict[str, Any]]:
    if "{" in columns.prompt or "}" in columns.prompt:
        return "".join(
            text + ("" if name is None else _typed(where, word, body, name, str, int))
            for text, name, _, _ in Formatter().parse(columns.prompt)
        )
    value = _found(where, word, body, columns.prompt)
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    ):
        raise DataUnusable(
            f"{where}: {word} {columns.prompt!r} is {type(value).__name__}, expected text"
            + (", or messages {role, content}" if chat else "")
        )
    if not chat:
        raise DataUnusable(
            f"{where}: {word} {columns.prompt!r} holds chat messages; set data.chat.enabled = true, or give text"
        )
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _record(where: str, word: str, body: dict[str, Any], mapping: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(mapping, dict):
        return {name: _value(where, word, body, below) for name, below in mapping.items()}
    if mapping.startswith("json:"):
        value = _value(where, word, body, mapping)
        if not isinstance(value, dict):
            raise DataUnusable(f"{where}: {word} {mapping[5:]!r} is not an object in JSON")
        return value
    found: dict[str, Any] = _typed(where, word, body, mapping, dict)
    return {name: _portable(where, word, f"{mapping}.{name}", value) for name, value in found.items()}


def _value(where: str, word: str, body: dict[str, Any], mapping: Any) -> Any:
    if isinstance(mapping, dict):
        return {name: _value(where, word, body, below) for name, below in mapping.items()}
    if not mapping.startswith("json:"):
        return _portable(where, word, mapping, _found(where, word, body, mapping))
    column = mapping.removeprefix("json:")
    text = _typed(where, word, body, column, str)
    try:
        return _portable(where, word, column, json.loads(text))
    except (ValueError, RecursionError) as error:
        raise DataUnusable(
            f"{where}: {word} {column!r} is not JSON ({error}); correct it, or map it without json:"
        ) from None


def _found(where: str, word: str, body: dict[str, Any], column: str) -> Any:
    """The value at a column, dots reaching into objects and lists; a column of the whole name comes first."""
    if column in body:
        return body[column]
    at: Any = body
    for part in column.split("."):
        if isinstance(at, dict) and part in at:
            at = at[part]
        elif isinstance(at, list) and part.isdecimal() and int(part) < len(at):
            at = at[int(part)]
        else:
            here = ", ".join(sorted(map(str, at))) if isinstance(at, dict) else type(at).__name__
            raise DataUnusable(f"{where}: {word} {column!r} is missing; found {here[:200] or 'none'}")
    return at


def _typed(where: str, word: str, body: dict[str, Any], column: str, kind: type, *also: type) -> Any:
    value = _found(where, word, body, column)
    if isinstance(value, bool) or not isinstance(value, (kind, *also)):
        raise DataUnusable(f"{where}: {word} {column!r} is {type(value).__name__}, expected {_KINDS[kind]}")
    return str(value) if kind is str else value


def _portable(where: str, word: str, column: str, value: Any) -> Any:
    """`value` if it can travel to a verifier: null, booleans, 64-bit integers, floats, text, bytes, lists, objects."""
    if isinstance(value, dict):
        return {str(name): _portable(where, word, f"{column}.{name}", below) for name, below in value.items()}
    if isinstance(value, list):
        return [_portable(where, word, f"{column}.{place}", below) for place, below in enumerate(value)]
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise DataUnusable(f"{where}: {word} {column!r} is an integer over 64 bits; write it as text")
    if value is not None and not isinstance(value, bool | int | float | str | bytes):
        raise DataUnusable(
            f"{where}: {word} {column!r} is {type(value).__name__}, which no record can hold; store text or numbers"
        )
    return value
