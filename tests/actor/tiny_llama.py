"""Tiny random Llamas, tickets and reference log-probs for the tests of the actor."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from actor.engines.torch.engine import TorchEngine
from actor.engines.torch.model import Policy
from broker.queue.wire import Completion, Lane, Prompt, Ticket, int32

EOS = 2


def llama(
    seed: int, *, vocabulary: int = 24, tied: bool = False, heads: int = 4, kv_heads: int = 2
) -> LlamaForCausalLM:
    """A random Llama whose next-token distributions are far from uniform, so that a wrong cache is detected."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=48,
        vocab_size=vocabulary,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.25,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config).eval()


def published(model: LlamaForCausalLM, directory: Path) -> Path:
    """Write the model's weights to a directory as a published version has them."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    save_file(tensors, directory / "model.safetensors")
    return directory


def spell(rows: list[list[int]]) -> list[str]:
    return [" ".join(str(token) for token in row if token != EOS) for row in rows]


def engine(model: LlamaForCausalLM, *, pass_tokens: int = 8192, **options: Any) -> TorchEngine:
    policy = Policy(model, pass_tokens=pass_tokens)
    return TorchEngine(policy, spell, **{"eos": [EOS], "max_new_tokens": 12, "max_batch": 16, **options})


def prompt(tokens: Iterable[int], index: int = 0) -> Prompt:
    return Prompt(index=index, text="", tokens=int32(list(tokens)), verifier="none", record={})


def ticket(
    index: int,
    n: int = 4,
    *,
    version: int = 0,
    lane: Lane = "train",
    seed: int | None = None,
    missing: Iterable[int] | None = None,
) -> Ticket:
    seed = 1000 + index if seed is None else seed
    group_id = f"e{version}:{index}" if lane == "eval" else f"0:{index}"
    return Ticket(
        group_id=group_id,
        lane=lane,
        prompt=index,
        n=n,
        seed=seed,
        version=version,
        attempt=1,
        missing=tuple(range(n) if missing is None else missing),
    )


def ragged(count: int, seed: int = 0, vocabulary: int = 24) -> list[Prompt]:
    """Prompts of 1 … 11 tokens."""
    rng = np.random.default_rng(seed)
    return [prompt(rng.integers(3, vocabulary, 1 + index * 7 % 11).tolist(), index) for index in range(count)]


def drain(sampler: TorchEngine, seconds: float = 0.0) -> list[Completion]:
    done: list[Completion] = []
    while sampler.in_flight:
        done += sampler.poll(seconds)
    return done


@torch.inference_mode()
def reference(model: LlamaForCausalLM, question: Prompt, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """log π of each answer token, from one plain forward pass over prompt and answer without cache or batch."""
    before = np.frombuffer(question.tokens, "<i4").tolist()
    logits = model(input_ids=torch.tensor([before + ids.tolist()])).logits[0, len(before) - 1 : -1]
    scores = torch.log_softmax(logits.float(), -1).gather(1, torch.tensor(ids.tolist()).unsqueeze(1)).squeeze(1)
    return np.asarray(scores.numpy())
