"""The public Python module `sieve`: what importing it costs, and runs started, watched, stopped and read through it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import sieve
from deploy.rundir.schema import SCHEMA
from learner.data.prompts import load_tokenizer
from learner.evaluation.results import Outputs, write_parquet
from learner.step_record import StepRecord

COUNTDOWN = Path(__file__).parents[1] / "examples" / "countdown"
PATIENCE = 240.0


def small(directory: Path, **sections: Any) -> dict[str, Any]:
    return {
        "run": {"name": "t", "directory": str(directory / "runs")},
        "model": {"path": COUNTDOWN / "base"},  # a Path: dictionaries may hold what a Config holds
        "data": {"train": str(COUNTDOWN / "train.jsonl"), "eval": str(COUNTDOWN / "eval.jsonl")},
        "sampling": {"group_size": 4, "max_new_tokens": 14},
        "schedule": {"steps": 4, "groups_per_step": 4, "checkpoint_every": 2, "max_staleness": 2},
        "evaluation": {"prompts": 4, "samples": 8},
        "learner": {"threads": 1, "optimizer": {"lr": 1e-6, "warmup_steps": 1}},
        **sections,
    }


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A run directory written by hand: two steps, of which the second was trained twice, and one evaluated version."""
    run = tmp_path / "runs" / "t"
    (run / "eval").mkdir(parents=True)
    config = sieve.load_config(small(tmp_path))
    (run / "config.yaml").write_text(json.dumps(json.loads(config.model_dump_json())))
    (run / "run.json").write_text(json.dumps({"schema": SCHEMA}))
    steps = [{"step": 1, "version": 1, "time": 1.0, "loss": 0.5}, {"step": 2, "version": 2, "time": 2.0, "loss": 9.0},
             {"step": 2, "version": 2, "time": 3.0, "loss": 0.25, "ess_rho": 1}]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps) + '{"step": 3, "torn": 1')
    (run / "eval.jsonl").write_text(json.dumps({"version": 0, "step": 0, "time": 1.0, "pass@1": 0.5}) + "\n")
    rows = [
        Outputs(
            0, ["pass", "fail"], ["2", "three"], [np.array([1, 2], np.int32), np.array([3], np.int32)], [-1.0, -2.0]
        ),
        Outputs(7, ["pass"], ["4"], [np.array([], np.int32)], [0.0]),
    ]
    write_parquet(run / "eval" / "v00000000.parquet", rows)
    return run


def test_importing_it_imports_none_of_the_packages_and_nothing_heavy() -> None:
    code = "import sys, sieve; sieve.__all__; dir(sieve); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded & {"broker", "actor", "verifier", "learner", "deploy", "torch", "ray", "vllm", "pyarrow"} == set()


def test_running_and_reading_loads_neither_torch_nor_ray() -> None:
    code = "import sys, sieve; sieve.run, sieve.Run, sieve.evaluate, sieve.Judgement, sieve.Config; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert {name.partition(".")[0] for name in done.stdout.split()} & {"torch", "ray", "vllm", "transformers"} == set()


@pytest.mark.parametrize("name", sieve.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    found = getattr(sieve, name)
    assert name == "__version__" or (found.__doc__ and len(found.__doc__) > 20)


def test_another_name_is_refused_as_by_any_module() -> None:
    with pytest.raises(AttributeError, match="module 'sieve' has no attribute 'learner'"):
        sieve.learner  # noqa: B018


def test_a_folder_of_the_program_that_hides_a_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "actor").mkdir()
    (tmp_path / "actor" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "program.py").write_text(
        "import sieve\ntry:\n    sieve.Run\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == (
        f"sieve's package 'actor' is hidden by {tmp_path}/actor/__init__.py; rename it, or use the command `sieve` in "
        "place of this module"
    )


def test_a_configuration_is_a_path_a_dictionary_or_a_config_and_overrides_come_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = small(tmp_path)
    config = sieve.load_config(tree)
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(json.loads(config.model_dump_json())))
    assert sieve.load_config(path) == sieve.load_config(str(path)) == sieve.load_config(config) == config
    assert config.learner.optimizer.lr == 1e-6 and config.model.path == COUNTDOWN / "base"
    monkeypatch.setenv("SIEVE_SCHEDULE__STEPS", "7")
    monkeypatch.setenv("SIEVE_SCHEDULE__GROUPS_PER_STEP", "8")
    changed = sieve.load_config(tree, {"schedule.steps": 9, "learner.optimizer.betas": [0.5, 1e-3]})
    assert (changed.schedule.steps, changed.schedule.groups_per_step) == (9, 8)
    assert changed.learner.optimizer.betas == (0.5, 1e-3)


def test_settings_that_cannot_be_used_are_refused_before_anything_starts(tmp_path: Path) -> None:
    for start in (sieve.load_config, sieve.run, sieve.start):
        with pytest.raises(sieve.ConfigError) as caught:
            start(small(tmp_path), {"schedule.stepz": 1, "run.seed": -1})  # type: ignore[operator]
        assert len(caught.value.problems) == 2 and "did you mean schedule.steps?" in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run directory"):
        sieve.Run(tmp_path)


def test_steps_are_a_table_with_one_row_each(written: Path) -> None:
    table = sieve.Run(written).metrics()
    assert table.column_names == list(StepRecord.model_fields)
    assert sieve.Run(written).metrics().slice(0, 0).schema == table.schema, "the same columns whatever was written"
    assert table.select(["step", "version", "loss", "ess_rho"]).to_pydict() == {
        "step": [1, 2], "version": [1, 2], "loss": [0.5, 0.25], "ess_rho": [None, 1.0],
    }  # fmt: skip


def test_evaluations_are_a_table_with_one_row_each(written: Path) -> None:
    table = sieve.Run(written).evaluations()
    assert table.select(["version", "pass@1"]).to_pydict() == {"version": [0], "pass@1": [0.5]}


@pytest.mark.parametrize("version", [None, 0])
def test_samples_are_a_table_with_one_row_each(written: Path, version: int | None) -> None:
    table = sieve.Run(written).samples(version)
    assert table.to_pydict() == {
        "version": [0, 0, 0], "prompt": [0, 0, 7], "sample": [0, 1, 0], "outcome": ["pass", "fail", "pass"],
        "answer": ["2", "three", "4"], "tokens": [[1, 2], [3], []], "log_prob": [-1.0, -2.0, 0.0],
    }  # fmt: skip
    assert table.schema.field("tokens").type == pa.list_(pa.int32())
    assert table.schema.field("log_prob").type == pa.float32()


def test_a_version_that_was_not_evaluated_is_named(written: Path) -> None:
    with pytest.raises(sieve.SieveError, match=r"version 3 was not evaluated; these were: \[0\]"):
        sieve.Run(written).samples(3)


def test_tables_of_a_run_that_has_written_nothing_yet_are_empty(written: Path) -> None:
    for name in ("metrics.jsonl", "eval.jsonl"):
        (written / name).unlink()
    run = sieve.Run(written)
    for table in (run.metrics(), run.evaluations(), run.samples()):
        assert table.num_rows == 0 and "version" in table.column_names
    with pytest.raises(sieve.SieveError, match="nothing to report"):
        run.summary()


def test_a_run_that_is_not_at_work_is_watched_to_the_end_of_its_file(written: Path) -> None:
    run = sieve.Run(written)
    assert [record["loss"] for record in run.watch()] == [0.5, 9.0, 0.25]
    assert (run.alive, run.outcome) == (False, None)
    with pytest.raises(RuntimeError, match="another program started this run"):
        run.stop()


def test_a_run_of_another_schema_is_refused(written: Path) -> None:
    (written / "run.json").write_text('{"schema": 1}')
    run = sieve.Run(written)
    for read in (run.metrics, run.evaluations, run.samples, run.summary, lambda: run.config):
        with pytest.raises(sieve.SieveError, match="schema 1"):
            read()


@pytest.mark.slow
def test_a_run_is_started_watched_stopped_resumed_and_evaluated(tmp_path: Path) -> None:
    tree = small(tmp_path)
    run = sieve.start(tree, {"schedule.steps": 1000})
    same = sieve.Run(run.path)  # as another program sees it
    assert run.alive and same.alive and run.outcome is None
    with pytest.raises(sieve.RunFailed, match=r"a `sieve run` of this name is alive") as caught:
        sieve.run(tree, resume=True)
    assert caught.value.exit_code == 64
    seen = []
    for record in run.watch():
        seen.append(record["step"])
        if len(seen) == 3:
            run.stop()
    assert seen[:3] == [1, 2, 3] and not same.alive
    assert run.outcome == same.outcome == "stopped" and run.wait() is run
    assert run.config == same.config and run.config.schedule.steps == 1000

    last = int(run.metrics()["step"].to_pylist()[-1])
    done = sieve.run(run.path, {"schedule.steps": last + 2}, resume=True)
    assert (done.outcome, done.alive, done.path) == ("finished", False, run.path)
    assert done.metrics()["step"].to_pylist() == list(range(1, last + 3))
    summary = done.summary()
    assert (summary["lost"], summary["duplicates"], summary["groups_trained"]) == (0, 0, 4 * (last + 2))
    assert done.evaluations()["version"].to_pylist() == [0, last + 2]
    samples = done.samples().to_pydict()
    assert len(samples["outcome"]) == 2 * 4 * 8 and set(samples["sample"]) == set(range(8))
    tokenizer = load_tokenizer(COUNTDOWN / "base")
    assert all(tokenizer.decode(tokens) for tokens in samples["tokens"])

    found = sieve.evaluate(done.path, done.path / "model")
    assert found["prompts"] == 4 and set(found["metrics"]) == {"base", "checkpoint"}
    own = sieve.Run(found["run"])
    assert own.samples(0).num_rows == 4 * 8 and own.outcome == "finished"
    sessions = (own.path / "sessions.jsonl").read_text()
    assert sieve.evaluate(done.path, done.path / "model") == found
    assert (own.path / "sessions.jsonl").read_text() == sessions, "an evaluation that is there is not repeated"


@pytest.mark.slow
def test_ctrl_c_drains_the_run_before_the_program_goes_on(tmp_path: Path) -> None:
    program = (
        "import json, sys, sieve\n"
        "try:\n    sieve.run(json.loads(sys.argv[1]), {'schedule.steps': 1000})\n"
        "except KeyboardInterrupt:\n    print('interrupted')\n"
    )
    tree = json.dumps(small(tmp_path), default=str)
    process = subprocess.Popen([sys.executable, "-c", program, tree], stdout=subprocess.PIPE, text=True)
    try:
        path = tmp_path / "runs" / "t"
        deadline = time.monotonic() + PATIENCE
        while not (path / "metrics.jsonl").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        os.kill(process.pid, 2)
        said, _ = process.communicate(timeout=PATIENCE)
    finally:
        if process.poll() is None:
            process.kill()
    run = sieve.Run(path)
    assert said == "interrupted\n" and run.outcome == "stopped" and not run.alive


def test_a_watcher_sees_steps_as_they_are_written(written: Path) -> None:
    """With the lock held, as by a launcher, from this process."""
    import fcntl

    lock = os.open(written / "run.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    seen: list[float] = []
    watcher = threading.Thread(target=lambda: seen.extend(record["step"] for record in sieve.Run(written).watch()))
    watcher.start()
    try:
        assert sieve.Run(written).alive
        with pytest.raises(TimeoutError):
            sieve.Run(written).wait(timeout=0.3)
        with (written / "metrics.jsonl").open("a") as file:
            file.write("}\n")
        time.sleep(0.5)
    finally:
        os.close(lock)
        watcher.join(timeout=30)
    assert seen == [1, 2, 2, 3]
