"""A small valid project on disk: a model directory by name only, prompt files, and the configuration that uses them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    """A configuration that passes every check, as a dictionary; the files it names exist."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"")
    for name, count in (("train", 8), ("eval", 4)):
        lines = [{"prompt": f"p{i}", "verifier": "arithmetic", "record": {"target": i}} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "run": {"name": "small", "directory": str(tmp_path / "runs")},
        "model": {"path": str(model)},
        "data": {"train": str(tmp_path / "train.jsonl"), "eval": str(tmp_path / "eval.jsonl")},
        "sampling": {"group_size": 4, "max_new_tokens": 16},
        "schedule": {"steps": 20, "groups_per_step": 2},
        "evaluation": {"prompts": 4, "samples": 4},
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], Path]:
    """Writes a configuration (a dictionary, or text as it stands) and gives its path."""

    def to_file(content: Any) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return to_file
