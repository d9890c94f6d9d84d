"""Benchmark of the torch engine against bare `transformers.generate`, in tokens per second, on the same prompts.

Prints the ratio (aim ≥ 0.9). Both sample at temperature 1 with the same batch size; the engine also records exact
log-probs, version spans and texts, which bare `generate` does not. Rounds alternate and the best of each counts. Times
are CPU times of this process (one thread on both sides), so that other load on the machine matters less.

    python benchmarks/actor_torch.py [--batch 128] [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from actor.engines.torch.engine import TorchEngine
from actor.engines.torch.model import Policy
from broker.queue.wire import Prompt, Ticket, int32

EOS, NEW_TOKENS, GROUP, GROUPS = 2, 14, 8, 64


def _model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=256,
        vocab_size=72,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config).eval()
    # A random model samples the end token once in 72 tokens, a trained one within 14: raise its probability.
    model.lm_head.weight.data[EOS] *= 2
    return model


def _prompts() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 72, rng.integers(10, 15)).tolist() for _ in range(GROUPS)]


def _bare(model: LlamaForCausalLM, prompts: list[list[int]], batch: int) -> Callable[[], int]:
    rows = [prompt for prompt in prompts for _ in range(GROUP)]

    def run() -> int:
        tokens = 0
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            width = max(map(len, part))
            ids = torch.tensor([[0] * (width - len(row)) + row for row in part])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part])
            with torch.inference_mode():
                out = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    do_sample=True,
                    top_k=0,
                    top_p=1.0,
                    temperature=1.0,
                    max_new_tokens=NEW_TOKENS,
                    pad_token_id=0,
                )[:, width:]
            ended = (out == EOS).cumsum(1)
            tokens += int((ended - (out == EOS).long() == 0).sum())
        return tokens

    return run


def _engine(model: LlamaForCausalLM, prompts: list[list[int]], batch: int, directory: Path) -> Callable[[], int]:
    model.save_pretrained(directory)
    engine = TorchEngine(
        Policy(model),
        lambda rows: [" ".join(map(str, row)) for row in rows],
        eos=[EOS],
        max_new_tokens=NEW_TOKENS,
        max_batch=batch,
    )
    engine.load(0, directory)
    seeds = iter(range(1 << 30))

    def run() -> int:
        for index, prompt in enumerate(prompts):
            ticket = Ticket(
                group_id=f"0:{index}",
                lane="train",
                prompt=index,
                n=GROUP,
                seed=next(seeds),
                version=0,
                attempt=1,
                missing=tuple(range(GROUP)),
            )
            engine.submit(ticket, Prompt(index=index, text="", tokens=int32(prompt), verifier="none", record={}))
        tokens = 0
        while engine.in_flight:
            tokens += sum(len(completion.ids) for completion in engine.poll(0.02))
        return tokens

    return run


def rates(batch: int, rounds: int) -> dict[str, list[float]]:
    """Tokens per CPU second of `bare generate` and `torch engine`, in each round after a warm-up."""
    torch.set_num_threads(1)
    disable_progress_bar()
    model, prompts = _model(), _prompts()
    with tempfile.TemporaryDirectory() as directory:
        sides = {
            "bare generate": _bare(model, prompts, batch),
            "torch engine": _engine(model, prompts, batch, Path(directory)),
        }
        seen: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds + 1):
            for name in sides if number % 2 else reversed(sides):
                start = time.process_time()
                tokens = sides[name]()
                rate = tokens / (time.process_time() - start)
                if number:
                    seen[name].append(rate)
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    best = {name: max(seen) for name, seen in rates(options.batch, options.rounds).items()}
    for name, rate in best.items():
        print(f"{name:14} {rate:8.0f} tokens/s")
    print(
        f"batch {options.batch}, {GROUPS * GROUP} completions of ≤ {NEW_TOKENS} tokens: ratio "
        f"{best['torch engine'] / best['bare generate']:.2f} (aim ≥ 0.90)"
    )


if __name__ == "__main__":
    main()
