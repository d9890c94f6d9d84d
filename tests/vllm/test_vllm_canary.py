"""Canaries scored by vLLM: after every update what the learner scores with the same files, to rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("vllm.v1", reason="make test-vllm installs it")

import torch

from broker.queue.wire import float32
from broker.weights.canary import difference
from learner.model.model import Scorer, load
from learner.weights.canary import BOUNDS
from learner.weights.sequences import halves, score_sequences

PROMPTS = [np.arange(3, 3 + length, dtype=np.int32) for length in (2, 5, 9, 13)]


def scored(directory: Path) -> list[bytes]:
    """By the learner's one scoring function."""
    ranks = cast(Any, SimpleNamespace(device=torch.device("cpu")))
    return score_sequences(Scorer(load(directory, torch.float32)), halves(PROMPTS), ranks)


def test_every_update_agrees_with_the_learner_and_the_same_weights_stay_flat(
    versions: tuple[list[Any], list[Path]], model_path: Path, open_vllm: Callable[..., Any]
) -> None:
    _, directories = versions
    engine = open_vllm(model_path)
    gaps: list[float] = []
    learner = {directory: scored(directory) for directory in directories}
    for version in range(24):  # three updates, then the same weights again and again, as at learning rate 0
        directory = directories[min(version, 2)]
        engine.load(version, directory)
        mean, largest = difference(learner[directory], [float32(one) for one in engine.score(halves(PROMPTS))])
        assert largest < 1e-4
        gaps.append(mean)
    assert max(gaps) < BOUNDS["float32"] / 10
    assert abs(np.mean(gaps[13:]) - np.mean(gaps[3:13])) < 1e-6
    engine.load(24, directories[0])  # and other weights are seen at once
    stale = difference(learner[directories[2]], [float32(one) for one in engine.score(halves(PROMPTS))])
    assert stale[0] > 10 * BOUNDS["float32"]
