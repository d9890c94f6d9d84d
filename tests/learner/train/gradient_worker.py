"""One rank of two training steps on fixed groups, once per task; writes gradients and weights of each task as JSON.

gradient_worker.py ANSWER MODEL TASKS, where TASKS is a JSON list of ["train" | "save" | "load", budget, checkpoints],
the objective's name after them where it is not the default, then for adapters "sharded", or "plain" for a model that
FSDP2 has not touched.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from broker.settings import LoraSettings
from learner.batch.packing import balance
from learner.batch.samples import Samples, shape_of
from learner.model.checkpoint import Checkpoints, Progress
from learner.model.lora import Unadapted, attach
from learner.model.model import Scorer, full_state, load, shard
from learner.objective.registry import build
from learner.objective.settings import OBJECTIVES
from learner.ranks import Ranks
from learner.settings import LearnerSettings, OptimizerSettings
from learner.train.partition import PartitionFunction
from learner.train.step import Trainer
from tests.learner.learner_rig import make_groups


def models(ranks: Ranks, path: Path, adapters: str) -> tuple[Scorer, Scorer | Unadapted]:
    """Policy and base."""
    model, options = load(path, torch.float32), {"mesh": ranks.mesh, "compute": torch.float32}
    if adapters:
        attach(model, LoraSettings(rank=4, alpha=8), seed=3)
        policy = Scorer(model) if adapters == "plain" else shard(model, **options, trainable=True)  # type: ignore[arg-type]
        return policy, Unadapted(policy)
    base = shard(load(path, torch.float32), **options, trainable=False)  # type: ignore[arg-type]
    return shard(model, **options, trainable=True), base  # type: ignore[arg-type]


def run(
    ranks: Ranks,
    model: Path,
    what: str,
    budget: int,
    checkpoints: str,
    name: str = "alpha_dpg",
    adapters: str = "",
) -> dict[str, Any]:
    settings = LearnerSettings(
        objective=OBJECTIVES[name](name=name), micro_batch_tokens=budget, row_tokens=24,
        optimizer=OptimizerSettings(lr=0.01, clip=1e9),
    )  # fmt: skip
    policy, base = models(ranks, model, adapters)
    partition = PartitionFunction(settings.partition)
    trainer = Trainer(settings, ranks, policy, base, build(settings.objective, length_norm=6.0), partition)
    store = Checkpoints(Path(checkpoints), ranks)
    start = 0
    if what == "load":
        progress = store.load(store.names()[-1], policy, trainer.optimizer, fingerprint="f")
        partition.load(progress.z)
        start = progress.step

    gradients: dict[str, list[float]] = {}

    def watch(*_: object) -> None:
        for name, parameter in policy.causal_lm.named_parameters():
            if parameter.requires_grad:
                gradient: Any = parameter.grad
                whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
                gradients.setdefault(name, whole.flatten().tolist())

    trainer.optimizer.register_step_pre_hook(watch)
    losses, norms = [], []
    for step in (start + 1, start + 2):
        groups = make_groups(7, 4, seed=step, start=3 * step)  # prompts come back from step to step
        prompts = [np.arange(3, 6 + group.prompt % 4, dtype=np.int32) for group in groups]
        shapes = [shape_of(group, prompt) for group, prompt in zip(groups, prompts, strict=True)]
        mine = balance(shapes, ranks.world)[ranks.rank]
        samples = Samples.of([groups[i] for i in mine], [prompts[i] for i in mine], mine)
        report = trainer.step(samples, step=step, progress=0.5)
        assert not report.refused, report.refused
        losses.append(report.loss)
        norms.append(report.grad_norm)
    if what == "save":
        store.save(Progress(2, "f", partition.pack()), 1, policy, trainer.optimizer)
    weights = {name: tensor.flatten().tolist() for name, tensor in full_state(policy, torch.float32, keep=True).items()}
    return {"gradients": gradients, "losses": losses, "norms": norms, "weights": weights}


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks = Ranks("cpu", 60)
    answers = [run(ranks, Path(sys.argv[2]), *task) for task in json.loads(sys.argv[3])]
    Path(sys.argv[1]).write_text(json.dumps(answers))
    ranks.close()
