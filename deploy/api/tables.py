"""The files of a run directory as Arrow tables: steps, evaluations, samples. Reads files only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_origin

from deploy.rundir import run_files
from deploy.rundir.run_files import RecordError
from deploy.rundir.schema import check_schema
from learner.step_record import StepRecord

if TYPE_CHECKING:
    import pyarrow


def metrics(run: Path) -> pyarrow.Table:
    """One row per optimiser step, a column per field of StepRecord, whether or not a step has a value for it."""
    import pyarrow as pa

    check_schema(run)
    records = run_files.steps(run)
    types = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    columns = {}
    for name, field in StepRecord.model_fields.items():
        values = [getattr(record, name) for record in records]
        if get_origin(field.annotation) is dict:
            columns[name] = pa.array([list(value.items()) for value in values], pa.map_(pa.string(), pa.float64()))
        else:
            (kind,) = {*(get_args(field.annotation) or [field.annotation])} - {NoneType}
            columns[name] = pa.array(values, types[kind])
    return pa.table(columns)


def evaluations(run: Path) -> pyarrow.Table:
    """One row per evaluated version, a column per field of eval.jsonl."""
    check_schema(run)
    return _table(run_files.evaluations(run), {"version": "int64", "step": "int64", "time": "float64"})


def samples(run: Path, version: int | None) -> pyarrow.Table:
    """One row per judged sample of one evaluated version, or of all of them.

    Raises RecordError where `version` was not evaluated or its file cannot be read.
    """
    import pyarrow as pa

    check_schema(run)
    versions = [int(record["version"]) for record in run_files.evaluations(run)]
    if version is not None and version not in versions:
        raise RecordError(f"{run}: version {version} was not evaluated; these were: {versions or 'none'}")
    schema = pa.schema([
        ("version", pa.int32()), ("prompt", pa.int32()), ("sample", pa.int32()), ("outcome", pa.string()),
        ("answer", pa.string()), ("tokens", pa.list_(pa.int32())), ("log_prob", pa.float32()),
    ])  # fmt: skip
    wanted = versions if version is None else [version]
    return pa.concat_tables([schema.empty_table(), *(_samples_of(run, found, schema) for found in wanted)])


def _samples_of(run: Path, version: int, schema: Any) -> pyarrow.Table:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import parquet

    path = run / "eval" / f"v{version:08d}.parquet"
    try:
        read = parquet.read_table(path, columns=["prompt", "outcomes", "answers", "tokens", "log_probs"])
    except (OSError, pa.ArrowException, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecordError(f"{path}: cannot be read as results ({reason}); evaluate again") from None
    columns = read.combine_chunks()
    counts = pc.list_value_length(columns["outcomes"]).to_numpy()
    positions = [np.arange(count, dtype=np.int32) for count in counts]
    flat = [
        np.full(int(counts.sum()), version, np.int32),
        np.repeat(columns["prompt"].to_numpy(), counts),
        np.concatenate(positions) if positions else np.empty(0, np.int32),
        *(pc.list_flatten(columns[name]) for name in ("outcomes", "answers", "tokens", "log_probs")),
    ]
    return pa.table(dict(zip(schema.names, flat, strict=True)), schema=schema)


def _table(records: Sequence[dict[str, Any]], always: dict[str, str]) -> pyarrow.Table:
    """The records as a table, columns in the order in which they first appear; a key that a record lacks is null.

    `always`: columns that are there without records, and their types.
    """
    import pyarrow as pa

    names = dict.fromkeys(always) | dict.fromkeys(name for record in records for name in record)
    columns = {}
    for name in names:
        column = pa.array([record.get(name) for record in records])
        if pa.types.is_null(column.type):
            column = column.cast(pa.type_for_alias(always.get(name, "float64")))
        columns[name] = column
    return pa.table(columns)
