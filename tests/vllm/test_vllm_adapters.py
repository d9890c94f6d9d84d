"""Adapters as the learner publishes them, in the real vLLM: the policy that the learner trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm.v1", reason="make test-vllm installs it")

import torch
from transformers import AutoModelForCausalLM

from broker.settings import LoraSettings
from broker.weights.directory import DirectoryStore
from learner.model.lora import attach
from learner.model.model import Scorer, load
from learner.weights.publish import export, publish_weights
from tests.actor.tiny_llama import prompt, ticket
from tests.broker.builders import v
from tests.vllm.served_llama import MAX_NEW, VOCABULARY, drain

TOLERANCE = 1e-4  # float32, per token
LORA = LoraSettings(rank=4, alpha=8)


@torch.no_grad()
def log_probs(path: Path, question: np.ndarray[Any, Any], ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    both = torch.from_numpy(np.concatenate([question, ids]).astype(np.int64))[None]
    logits = AutoModelForCausalLM.from_pretrained(path)(both).logits[0, len(question) - 1 : -1].float()
    return np.asarray(logits.log_softmax(-1).gather(-1, both[0, len(question) :, None]).squeeze(-1))


@pytest.mark.slow
def test_a_published_adapter_is_the_merged_model(
    model_path: Path, open_vllm: Callable[..., Any], tmp_path: Path
) -> None:
    """Version 0 is the base; later ones equal their merged exports within 1e-4, sampled and scored."""
    policy, weights = Scorer(attach(load(model_path, torch.float32), LORA, seed=1)), DirectoryStore(tmp_path / "w")
    engine = open_vllm(model_path, lora=LORA, max_batch=8)
    question, answer = np.arange(5, 12), np.arange(20, 32) % VOCABULARY
    base, moved = log_probs(model_path, question, answer), []
    for version in range(3):
        publish_weights(weights, v(version), policy, model_path, torch.float32, first=True, step=version)
        export(tmp_path / "merged", policy, model_path, torch.float32, first=True)
        engine.load(version, weights.fetch(v(version)).directory)
        wanted = log_probs(tmp_path / "merged", question, answer)
        np.testing.assert_allclose(engine.score([(question, answer)])[0], wanted, atol=TOLERANCE)
        engine.submit(ticket(version, n=3, version=version), prompt(question.tolist(), version))
        for one in drain(engine):
            assert one.spans == ((version, 0, len(one.ids)),) and 1 <= len(one.ids) <= MAX_NEW
            np.testing.assert_allclose(
                one.sampler_logprobs, log_probs(tmp_path / "merged", question, one.ids), atol=TOLERANCE
            )
        moved.append(float(np.abs(wanted - base).max()))
        draw = torch.Generator().manual_seed(version)
        with torch.no_grad():
            for name, value in policy.causal_lm.named_parameters():
                if name.endswith("lora_B"):
                    value.copy_(0.1 * torch.randn(value.shape, generator=draw))
    assert moved[0] == 0 and min(moved[1:]) > 0.05
