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
from tests.actor.tiny_llama import prompt, reference, ticket
from tests.vllm.served_llama import VOCABULARY, drain

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


@pytest.mark.slow
def test_a_canary_sees_keys_and_values_that_a_connector_keeps_over_an_update(
    versions: tuple[list[Any], list[Path]], model_path: Path, open_vllm: Callable[..., Any], tmp_path: Path
) -> None:
    """Cleared or not, the prefix cache is not the only place: such arguments are refused unless declared unsafe."""
    models, directories = versions
    kept = {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(tmp_path / "kept")},
    }
    engine = open_vllm(model_path, max_batch=8, unsafe_arguments={"kv_transfer_config": kept})
    ids = np.random.default_rng(1).integers(3, VOCABULARY, 97).astype(np.int32)
    question, answer = prompt(ids[:96].tolist()), ids[96:]
    for version, model in ((0, 0), (1, 0), (2, 1)):  # stored, reused under the same weights, reused under others
        engine.load(version, directories[model])
        scored_off = np.abs(engine.score([(ids[:96], answer)])[0] - reference(models[model], question, answer)).max()
        engine.submit(ticket(version, n=1, version=version), question)
        (one,) = drain(engine)
        sampled_off = np.abs(one.sampler_logprobs - reference(models[model], question, one.ids)).max()
        assert max(scored_off, sampled_off) < 1e-4 if version < 2 else min(scored_off, sampled_off) > 0.1
