"""The ready configurations: `sieve config` accepts each, their prompts load, their records suit their verifiers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deploy.config.load import load
from deploy.config.tree import Config
from learner.data.rows import Row, rows
from verifier.builtin.lean.extraction import read_record as lean_record
from verifier.builtin.math.verifier import MathAnswer
from verifier.builtin.python.problem import read_record as python_record

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
EMPTY_MESSAGE = [{"content": "", "role": "user"}]
STATEMENTS = [
    {
        "data_source": "lean", "prompt": EMPTY_MESSAGE, "ability": "formal_math", "split": "test",
        "informal_statement": f"/-- Show that {n} + {n} = {2 * n}.-/\n",
        "theorem_statement": f"theorem doubled_{n} : ({n} : Nat) + {n} = {2 * n} := by\n",
        "theorem_full_name": f"doubled_{n}", "src_context": "import Mathlib\n  open Nat\n", "extra_info": {"index": n},
    }
    for n in range(200)
]  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model directory by name only."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"")
    return path


@pytest.fixture
def settings(model: Path, tmp_path: Path) -> dict[str, list[str]]:
    """What a person has to bring, per example."""
    statements = tmp_path / "statements.parquet"
    pq.write_table(pa.Table.from_pylist(STATEMENTS), statements)
    eval_split = tmp_path / "eval.parquet"
    pq.write_table(pa.Table.from_pylist(STATEMENTS), eval_split)
    here = [f"model.path={model}"]
    return {"math": here, "code": here, "lean": [*here, f"data.train={statements}", f"data.eval={eval_split}"]}


def load_example(name: str, settings: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(ROOT)
    return load(EXAMPLES / name / f"{name}.yaml", settings[name], {})


def every(config: Config) -> list[Row]:
    assert config.data.eval is not None
    return [row for source in (config.data.train, config.data.eval) for row in rows(source, config.data)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["math", "code", "lean"])
def test_sieve_config_accepts_it(name: str, settings: dict[str, list[str]]) -> None:
    sets = [part for setting in settings[name] for part in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "-m", "sieve", "config", f"examples/{name}/{name}.yaml", *sets],
        capture_output=True, text=True, cwd=ROOT, timeout=120, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"name: {name}" in done.stdout


@pytest.mark.parametrize("name", ["math", "code", "lean"])
def test_without_a_model_it_asks_for_exactly_what_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from deploy.config.errors import ConfigError

    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError) as caught:
        load(EXAMPLES / name / f"{name}.yaml", [], {})
    keys = [problem.partition(" = ")[0] for problem in caught.value.problems]
    assert keys == (["model.path", "data.train", "data.eval"] if name == "lean" else ["model.path"])


def test_the_answers_of_math_are_right_by_its_own_verifier(
    settings: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_example("math", settings, monkeypatch)
    verifier = MathAnswer(**config.verifier.serve["math"].options)
    found = every(config)
    assert len(found) >= 12 and all(row.verifier == "math" for row in found)
    for row in found:
        assert isinstance(row.prompt, str) and row.prompt.endswith("your final answer in \\boxed{}.")
        said = verifier.judge(row.record, f"So it is \\boxed{{{row.record['answer']}}}.")
        assert said.outcome == "pass", (row, said)
        assert verifier.judge(row.record, "\\boxed{17.25}").outcome == "fail"
    verifier.close()


def test_the_records_of_code_make_sense_to_its_verifier(
    settings: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = every(load_example("code", settings, monkeypatch))
    assert len(found) >= 6 and all(row.verifier == "python" for row in found)
    for row in found:
        problem = python_record(row.record)
        assert problem.tests
        assert not problem.entry or problem.entry.split(".")[0] in str(row.prompt)


def test_the_parquet_layout_of_lean_becomes_prompts_and_records(
    settings: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = every(load_example("lean", settings, monkeypatch))
    assert len(found) == 2 * len(STATEMENTS)
    assert found[3].prompt == (
        "Complete the following Lean 4 code:\n\n```lean4\nimport Mathlib\n  open Nat\n\n"
        "/-- Show that 3 + 3 = 6.-/\ntheorem doubled_3 : (3 : Nat) + 3 = 6 := by\n"
    )
    assert {row.verifier for row in found} == {"lean"}
    assert [lean_record(row.record).name for row in found[:200]] == [f"doubled_{n}" for n in range(200)]


def test_the_recipe_of_lean_is_the_papers(settings: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_example("lean", settings, monkeypatch)
    optimizer, objective, schedule = config.learner.optimizer, config.learner.objective, config.schedule
    said: dict[str, Any] = {
        "groups": schedule.groups_per_step, "samples": config.sampling.group_size, "steps": schedule.steps,
        "rate": optimizer.lr, "warm-up": optimizer.warmup_steps / schedule.steps, "decay": optimizer.weight_decay,
        "gradient clip": optimizer.clip, "reward clip": objective.clip, "precision": config.model.dtype,
        "response": config.sampling.max_new_tokens, "held out": config.evaluation.prompts,
        "per problem": config.evaluation.samples,
    }  # fmt: skip
    assert said == {
        "groups": 128, "samples": 4, "steps": 200, "rate": 2e-6, "warm-up": 0.05, "decay": 0.0, "gradient clip": 1.0,
        "reward clip": 10.0, "precision": "float16", "response": 1024, "held out": 200, "per problem": 256,
    }  # fmt: skip


def test_the_prompt_files_are_small_and_all_different() -> None:
    for name in ("math", "code"):
        lines = [
            line
            for split in ("train", "eval")
            for line in (EXAMPLES / name / f"{split}.jsonl").read_text().splitlines()
        ]
        assert len(lines) <= 30 and len({json.dumps(json.loads(line)) for line in lines}) == len(lines)
