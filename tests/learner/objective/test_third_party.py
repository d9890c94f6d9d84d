"""Objectives of others: the example of docs/how-to/objective.md, installed by pip, and a module named by factory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.batch.samples import Samples
from learner.model.model import full_state, load, shard
from learner.objective.registry import ObjectiveError, build
from learner.objective.settings import ThirdPartySettings
from learner.ranks import Ranks
from learner.settings import LearnerSettings, OptimizerSettings
from learner.train.partition import PartitionFunction
from learner.train.step import Trainer
from tests.learner.learner_rig import make_groups
from tests.learner.objective.objective_cases import SETTINGS, objective, random_sequences

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = re.compile(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
MINE = """
import torch
from learner.objective.ratios import correction_weights

class Mine:
    def __init__(self, penalty=0.1):
        self.penalty = penalty
    def values(self, sequences, context):
        reward = torch.where(sequences.passed, 1.0, -self.penalty) * context.length_norm
        return correction_weights(sequences, context.settings) * reward[:, None]

def transposed(**options):
    class Transposed(Mine):
        def values(self, sequences, context):
            return super().values(sequences, context).T
    return Transposed(**options)

unusable = object
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of packages into which pip has installed the document's example."""
    project, site = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("site")
    for name, text in EXAMPLE.findall((ROOT / "docs" / "how-to" / "objective.md").read_text()):
        (project / name).write_text(text)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run(
        [*command, "--target", str(site), str(project)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The module `mine_of_a_user` beside the user's configuration."""
    (tmp_path / "mine_of_a_user.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine_of_a_user", None)


EVALUATE = """
import json, sys
from learner.objective.registry import build
from tests.learner.objective.objective_cases import SETTINGS, random_sequences
settings = SETTINGS.validate_python(json.loads(sys.argv[1]))
found = build(settings, length_norm=3)(random_sequences([3, 2]))
print(json.dumps([found.values[:, 0].tolist(), float(found.diagnostics["alpha"]), settings.staleness_ess]))
"""


@pytest.mark.slow
def test_an_installed_objective_is_found_by_its_name(installed: Path) -> None:
    section = {"name": "signed", "options": {"penalty": 0.2}, "truncation": 2.0}
    environment = {**os.environ, "PYTHONPATH": f"{installed}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", EVALUATE, json.dumps(section)], capture_output=True, text=True, env=environment,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    values, alpha, ess = json.loads(done.stdout)
    sequences = random_sequences([3, 2])
    ratio = sequences.log_rho.exp().clamp(max=2.0)
    assert values == pytest.approx((ratio * torch.where(sequences.passed, 1.0, -0.2)).tolist(), rel=1e-5)
    assert (alpha, ess) == (0.5, "ess_rho")


def test_a_module_of_the_user_is_named_by_factory_and_trains(mine: None, model_path: Path) -> None:
    section = {"factory": "mine_of_a_user:Mine", "options": {"penalty": 0.5}}
    settings = LearnerSettings.model_validate(
        {"objective": section, "micro_batch_tokens": 64, "optimizer": OptimizerSettings(lr=0.02)}
    )
    assert settings.objective.name == "Mine"
    assert SETTINGS.validate_python(settings.objective.model_dump()) == settings.objective
    ranks = Ranks("cpu", 60)
    try:
        policy = shard(load(model_path, torch.float32), ranks.mesh, compute=torch.float32, trainable=True)
        base = shard(load(model_path, torch.float32), ranks.mesh, compute=torch.float32, trainable=False)
        chosen = build(settings.objective, length_norm=6.0)
        trainer = Trainer(settings, ranks, policy, base, chosen, PartitionFunction(settings.partition))
        before = {name: value.clone() for name, value in full_state(policy, torch.float32, keep=True).items()}
        groups = make_groups(4, 4)
        samples = Samples.of(groups, [np.arange(3, 6, dtype=np.int32)] * 4, range(4))
        report = trainer.step(samples, step=1, progress=0.5)
        after = full_state(policy, torch.float32, keep=True)
    finally:
        ranks.close()
    assert not report.refused and report.grad_norm > 0
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    for sequences in report.sequences:
        expected = sequences.log_rho.exp().clamp(max=5.0) * torch.where(sequences.passed, 6.0, -3.0)
        assert torch.allclose(chosen.values(sequences)[:, 0], expected)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"factory": "mine_of_a_user:Nowhere"}, "cannot import 'mine_of_a_user:Nowhere'"),
        ({"factory": "not_installed_anywhere:Mine"}, "install it or correct the name"),
        ({"factory": "mine_of_a_user:MINE"}, "cannot import"),
        (
            {"factory": "mine_of_a_user:Mine", "options": {"strength": 1}},
            "not be made with options {'strength': 1}",
        ),
        ({"factory": "mine_of_a_user:unusable"}, "object has no method values(sequences, context)"),
    ],
)
def test_one_that_cannot_be_made_is_refused_with_the_reason(mine: None, section: dict[str, object], said: str) -> None:
    with pytest.raises(ObjectiveError, match=re.escape(said)):
        objective(**section)


def test_an_entry_point_that_is_gone_is_named() -> None:
    with pytest.raises(ObjectiveError, match="no objective is called 'gone'"):
        build(ThirdPartySettings(name="gone"), length_norm=3)


def test_coefficients_of_another_shape_are_refused(mine: None) -> None:
    with pytest.raises(ObjectiveError, match=r"'transposed' gave coefficients of shape \(1, 5\) for 5 sequences"):
        objective(factory="mine_of_a_user:transposed").values(random_sequences([3, 2], tokens=4))
