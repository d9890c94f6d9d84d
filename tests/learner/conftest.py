"""Fixtures of the learner's tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.learner.learner_rig import ROOT, save_model
from tests.ports import hold_port


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    return save_model(tmp_path / "base")


@pytest.fixture(scope="session")
def torchrun(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Any]]:
    """Run a worker script on `ranks` gloo processes; each writes JSON to the path it is given. Returns the answers."""

    def run(script: Path, ranks: int, *arguments: str) -> list[Any]:
        path = tmp_path_factory.mktemp("torchrun")
        outputs = [path / f"answer-{ranks}-{rank}.json" for rank in range(ranks)]
        port = str(hold_port())
        processes = []
        for rank, output in enumerate(outputs):
            environment = os.environ | {
                "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
            }  # fmt: skip
            command = [sys.executable, str(script), str(output), *arguments]
            processes.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            )
        for process in processes:
            text, _ = process.communicate(timeout=600)
            assert process.returncode == 0, text
        return [json.loads(output.read_text()) for output in outputs]

    return run
