"""A tiny random Llama of a shape that vLLM's CPU kernels serve (heads of 32), with a tokenizer; and polling."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from actor.engine import Engine
from broker.queue.state import RunSpec
from broker.queue.wire import Completion

EOS = 2
VOCABULARY = 64
LONGEST = 256
MAX_NEW = 128
ARGUMENTS = {
    "enforce_eager": True,
    "kv_cache_memory_bytes": 64 << 20,
    "block_size": 32,
    "max_model_len": LONGEST,
}
"""vLLM's engine arguments in all tests."""


def served_llama(seed: int, *, tied: bool = False, kv_heads: int = 1) -> LlamaForCausalLM:
    """A random Llama whose next-token distributions are far from uniform (so wrong weights or a wrong cache show)."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=kv_heads, intermediate_size=96,
        vocab_size=VOCABULARY, max_position_embeddings=LONGEST, tie_word_embeddings=tied, initializer_range=0.15,
        pad_token_id=0, bos_token_id=1, eos_token_id=EOS,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def save(model: Any, path: Path) -> Path:
    """A Hugging Face directory: the model and a word-level tokenizer of its size."""
    words = {"<pad>": 0, "<s>": 1, "</s>": EOS} | {f"w{token}": token for token in range(3, VOCABULARY)}
    raw = Tokenizer(WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(path)
    model.save_pretrained(path)
    # What a published model may well say, and what must not change how the policy is sampled.
    defaults = {"do_sample": True, "temperature": 0.1, "top_k": 1, "eos_token_id": [EOS, 7, 8, 9], "max_length": 5}
    (path / "generation_config.json").write_text(json.dumps(defaults))
    return path


def spec(eos: tuple[int, ...], max_new_tokens: int) -> RunSpec:
    """What an engine reads of a run: its end tokens and length."""
    return RunSpec(
        fingerprint="f" * 64, seed=0, steps=1, group_size=4, groups_per_step=1, publish_every=1, max_staleness=1,
        max_queued_bytes=1 << 20, max_new_tokens=max_new_tokens, train_prompts=1, eval_prompts=0, eos_token_ids=eos,
        weights="",
    )  # fmt: skip


def drain(engine: Engine, seconds: float = 300.0) -> list[Completion]:
    """Poll until nothing is in flight."""
    done: list[Completion] = []
    until = time.monotonic() + seconds
    while engine.in_flight:
        assert time.monotonic() < until, f"{engine.in_flight} in flight after {seconds:g} s"
        done += engine.poll(0.02)
    return done
