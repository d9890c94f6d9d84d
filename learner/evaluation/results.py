"""An evaluation as a Parquet file: one row per prompt, with its counts, its diversity and every sample.

A sample's tokens are kept, so that any model can score the outputs later; its log-probability is the sampler's own. All
numbers are those of learner/evaluation/stats.py. The file carries the schema number of its columns.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.errors import EX_DATA, SieveError
from learner.difficulty import level
from learner.evaluation.stats import gini_simpson, shannon

SCHEMA = 1
"""Raised by one when a column changes its name, type or meaning."""
_SCHEMA_KEY = b"sieve.schema"


class ResultsUnreadable(SieveError):
    """A Parquet file of results is missing, damaged or of another schema."""

    exit_code = EX_DATA


@dataclass(frozen=True)
class Outputs:
    """Everything that was sampled for one prompt; the lists have one entry per judged sample."""

    prompt: int
    outcomes: list[str]
    """`pass` or `fail`."""
    answers: list[str]
    """Canonical form of a right answer, the text of a wrong one."""
    tokens: list[NDArray[np.int32]]
    log_probs: list[float]
    """Σ_t log μ(y_t), nats, of each sample under the version that was evaluated."""

    @property
    def right(self) -> list[str]:
        return [answer for outcome, answer in zip(self.outcomes, self.answers, strict=True) if outcome == "pass"]


def write_parquet(path: Path, rows: Sequence[Outputs]) -> None:
    """Write a table of `rows` to `path`; durable when it returns."""
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, Any] = {
        "prompt": pa.array([row.prompt for row in rows], pa.int32()),
        "n": pa.array([len(row.outcomes) for row in rows], pa.int32()),
        "correct": pa.array([len(row.right) for row in rows], pa.int32()),
        "distinct": pa.array([len(set(row.right)) for row in rows], pa.int32()),
        "shannon": pa.array([shannon(row.right) for row in rows], pa.float64()),
        "gini_simpson": pa.array([gini_simpson(row.right) for row in rows], pa.float64()),
        "level": pa.array([level(len(row.outcomes), len(row.right)) if row.outcomes else None for row in rows]),
        "outcomes": pa.array([row.outcomes for row in rows], pa.list_(pa.string())),
        "answers": pa.array([row.answers for row in rows], pa.list_(pa.string())),
        "tokens": pa.array([row.tokens for row in rows], pa.list_(pa.list_(pa.int32()))),
        "log_probs": pa.array([row.log_probs for row in rows], pa.list_(pa.float32())),
    }
    table = pa.table(columns).replace_schema_metadata({_SCHEMA_KEY: str(SCHEMA).encode()})
    parquet.write_table(table, path, compression="zstd")
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def read_parquet(path: Path) -> Iterator[Outputs]:
    """The rows of a table that `write_parquet` wrote, a few at a time. Raises ResultsUnreadable."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    names = ["prompt", "outcomes", "answers", "tokens", "log_probs"]
    try:
        with ParquetFile(path) as file:
            schema = (file.schema_arrow.metadata or {}).get(_SCHEMA_KEY, b"none").decode("ascii", "replace")
            if schema != str(SCHEMA):
                raise ResultsUnreadable(
                    f"{path}: is of schema {schema}, this release reads schema {SCHEMA}; evaluate again"
                )
            for batch in file.iter_batches(batch_size=16, columns=names):
                for row in batch.to_pylist():
                    tokens = [np.array(ids, np.int32) for ids in row["tokens"]]
                    yield Outputs(row["prompt"], row["outcomes"], row["answers"], tokens, row["log_probs"])
    except (OSError, ArrowException, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ResultsUnreadable(f"{path}: cannot be read as results ({reason}); evaluate again") from None
