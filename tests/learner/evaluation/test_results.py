"""Outputs survive the Parquet file, a base model scores them as its own sampler would, and a checkpoint becomes a
model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.evaluation.results import Outputs, ResultsUnreadable, read_parquet, write_parquet
from learner.model.checkpoint import CheckpointCorrupt, Checkpoints, Progress, is_checkpoint
from learner.model.model import Scorer, load
from learner.model.perplexity import base_log_probs
from learner.ranks import Ranks
from learner.weights.publish import convert
from tests.learner.learner_rig import VOCABULARY, save_model


def outputs(prompt: int, seed: int) -> Outputs:
    draw = np.random.default_rng(seed)
    tokens = [draw.integers(0, VOCABULARY, length).astype(np.int32) for length in (3, 1, 5)]
    return Outputs(prompt, ["pass", "fail", "pass"], ["a", "text", "a"], tokens, [-1.5, -2.0, -0.25])


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    rows = [outputs(3, 1), outputs(7, 2), Outputs(9, [], [], [], [])]
    write_parquet(tmp_path / "v.parquet", rows)
    found = list(read_parquet(tmp_path / "v.parquet"))
    assert [row.prompt for row in found] == [3, 7, 9]
    for before, after in zip(rows, found, strict=True):
        assert (before.outcomes, before.answers, before.log_probs) == (after.outcomes, after.answers, after.log_probs)
        assert all((a == b).all() for a, b in zip(before.tokens, after.tokens, strict=True))
    from pyarrow.parquet import read_table

    table = read_table(tmp_path / "v.parquet").to_pylist()
    assert [(row["n"], row["correct"], row["distinct"], row["level"]) for row in table] == [
        (3, 2, 1, "medium"), (3, 2, 1, "medium"), (0, 0, 0, None),
    ]  # fmt: skip


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    path.write_bytes(b"not a table")
    with pytest.raises(ResultsUnreadable, match=r"v\.parquet.*evaluate again"):
        list(read_parquet(path))


@pytest.mark.parametrize("schema", [None, b"0", b"9"])
def test_a_table_of_another_schema_is_refused(tmp_path: Path, schema: bytes | None) -> None:
    from pyarrow.parquet import read_table, write_table

    path = tmp_path / "v.parquet"
    write_parquet(path, [outputs(3, 1)])
    metadata = {} if schema is None else {b"sieve.schema": schema}
    write_table(read_table(path).replace_schema_metadata(metadata), path)
    with pytest.raises(
        ResultsUnreadable, match=r"is of schema (none|0|9), this release reads schema 1; evaluate again"
    ):
        list(read_parquet(path))


@pytest.mark.parametrize("budget", [8, 1 << 16])
def test_outputs_are_scored_as_the_model_itself_scores_them(tmp_path: Path, budget: int) -> None:
    path = save_model(tmp_path / "base")
    prompts = [np.array([4, 5], np.int32), np.array([6, 7, 8], np.int32)]
    given = [[*outputs(0, 3).tokens, np.zeros(0, np.int32)], outputs(1, 4).tokens]
    found = base_log_probs(path, prompts, given, dtype=torch.float32, budget=budget)
    assert found[0][3] == 0
    model = AutoModelForCausalLM.from_pretrained(path)
    for prompt, group, sums in zip(prompts, given, found, strict=True):
        for ids, value in zip(group, sums, strict=True):
            if len(ids):
                both = torch.from_numpy(np.concatenate([prompt, ids]).astype(np.int64))[None]
                with torch.no_grad():
                    logs = model(both).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                assert value == pytest.approx(float(logs.gather(-1, both[0, len(prompt) :, None]).sum()), abs=1e-4)


def test_a_checkpoint_becomes_a_model_that_loads_anywhere_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    policy = Scorer(load(save_model(tmp_path / "trained", seed=5), torch.float32))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    ranks = Ranks("cpu", 60.0)
    try:
        saved = Progress(step=4, fingerprint="f")
        store = Checkpoints(tmp_path / "checkpoints", ranks)
        directory = store.directory(store.save(saved, 1, policy, optimizer))
    finally:
        ranks.close()  # a process has one group of ranks, and the other tests have theirs
    assert is_checkpoint(directory) and not is_checkpoint(base)
    convert(directory, tmp_path / "out", base, torch.float32)
    wanted = AutoModelForCausalLM.from_pretrained(tmp_path / "trained").state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    shard = next(directory.glob("__0_*"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(CheckpointCorrupt, match=shard.name):
        convert(directory, tmp_path / "out", base, torch.float32)
