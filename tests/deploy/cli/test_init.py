"""`sieve init`: what it writes is a configuration that works as soon as the model and the prompts are filled in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from deploy.cli.main import app
from deploy.config.load import load

ROOT = Path(__file__).parents[3]
TASKS = ("math", "code", "lean", "own")
ROWS: dict[str, dict[str, Any]] = {
    "math": {"question": "1 + 1?", "answer": "2"},
    "code": {"prompt": "Add.", "record": {"entry": "add", "tests": [{"call": [1, 2], "expected": 3}]}},
    "lean": {
        "src_context": "import Mathlib\n", "informal_statement": "/-- t -/\n", "theorem_full_name": "t",
        "theorem_statement": "theorem t : 1 + 1 = 2 := by\n",
    },
    "own": {"question": "1 + 1?", "answer": "2"},
}  # fmt: skip


def init(path: Path, task: str) -> list[str]:
    done = CliRunner().invoke(app, ["init", str(path), "--task", task])
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


@pytest.fixture
def filled(tree: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    """What a newcomer fills in, by the text that `sieve init` left for it; the prompts are written per task."""
    return {
        "models/instruct": tree["model"]["path"],
        "models/DeepSeek-Prover-V1.5-SFT": tree["model"]["path"],
        "data/train.parquet": str(tmp_path / "prompts.jsonl"),
        "data/train.jsonl": str(tmp_path / "prompts.jsonl"),
        "data/eval.parquet": str(tmp_path / "held_out.jsonl"),
        "data/eval.jsonl": str(tmp_path / "held_out.jsonl"),
    }


def fill(path: Path, task: str, filled: dict[str, str], rows: int = 200) -> None:
    for name in ("prompts", "held_out"):
        Path(filled["data/train.jsonl"]).with_stem(name).write_text((json.dumps(ROWS[task]) + "\n") * rows)
    text = path.read_text()
    for placeholder, value in filled.items():
        text = text.replace(placeholder, value)
    path.write_text(text)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.slow
def test_what_is_written_passes_once_model_and_prompts_are_filled_in(
    task: str, tmp_path: Path, filled: dict[str, str]
) -> None:
    path = tmp_path / "new" / "mine.yaml"
    written = init(path, task)
    assert written == [str(path), *([str(path.with_name("my_verifier.py"))] if task == "own" else [])]
    fill(path, task, filled)
    done = subprocess.run(
        [sys.executable, "-m", "sieve", "config", str(path)], capture_output=True, text=True, timeout=60, check=False,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["run"]["name"] == task


@pytest.mark.parametrize("task", TASKS)
def test_before_that_it_is_the_model_and_the_prompts_that_are_missing(task: str, tmp_path: Path) -> None:
    init(tmp_path / "c.yaml", task)
    done = CliRunner().invoke(app, ["config", str(tmp_path / "c.yaml")])
    problems = getattr(done.exception, "problems", ())
    assert [problem.split(" = ")[0] for problem in problems] == ["model.path", "data.train", "data.eval"]


@pytest.mark.parametrize("task", ["math", "code", "lean"])
def test_it_has_the_settings_of_the_example(task: str, tmp_path: Path, filled: dict[str, str]) -> None:
    path = tmp_path / "c.yaml"
    init(path, task)
    fill(path, task, filled)
    mine = load(path, (), {}).model_dump()
    theirs = load(ROOT / "examples" / task / f"{task}.yaml", (), {}, check="none").model_dump()
    for section in ("run", "evaluation"):  # names and sizes of what is the user's
        mine.pop(section), theirs.pop(section)
    for section, key in (("model", "path"), ("data", "train"), ("data", "eval")):
        mine[section].pop(key), theirs[section].pop(key)
    assert mine == theirs


@pytest.mark.parametrize("task", TASKS)
def test_every_setting_has_its_comment_or_its_section_has(task: str) -> None:
    text = (ROOT / "deploy" / "cli" / "templates" / f"{task}.yaml").read_text()
    assert text.count(" # ") >= 20 and max(map(len, text.splitlines())) <= 120


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    verifier = tmp_path / "my_verifier.py"
    verifier.write_text("mine")
    done = CliRunner().invoke(app, ["init", str(tmp_path / "c.yaml"), "--task", "own"])
    assert str(done.exception) == f"{verifier}: exists, and is not overwritten; give another path"
    assert verifier.read_text() == "mine" and not (tmp_path / "c.yaml").exists()


@pytest.mark.slow
def test_the_own_verifier_is_found_beside_its_configuration_from_anywhere(
    tmp_path: Path, filled: dict[str, str]
) -> None:
    """By `sieve doctor`, which makes it as a service would."""
    path, elsewhere = tmp_path / "mine" / "c.yaml", tmp_path / "elsewhere"
    elsewhere.mkdir()
    init(path, "own")
    fill(path, "own", filled)
    done = subprocess.run(
        [sys.executable, "-m", "sieve", "doctor", str(path)], capture_output=True, text=True, timeout=120, check=False,
        cwd=elsewhere,
    )  # fmt: skip
    assert "ok       verifier mine: mine/1" in done.stdout, done.stdout + done.stderr


def test_the_own_verifier_is_a_verifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from verifier.protocol import make

    init(tmp_path / "c.yaml", "own")
    monkeypatch.syspath_prepend(tmp_path)
    mine = make("mine", factory="my_verifier:MyVerifier")
    said = [mine.judge({"answer": "2"}, answer) for answer in ("so\n2", "so\n3", "")]
    assert [(one.outcome, one.reason) for one in said] == [
        ("pass", "equal"), ("fail", "different"), ("fail", "no_answer"),
    ]  # fmt: skip
    assert {one.reason for one in said} == mine.reasons
    assert len((tmp_path / "my_verifier.py").read_text().splitlines()) <= 25
