"""The generator of the demo's prompt files and base model: `python examples/countdown/make_base.py`.

Takes less than five minutes on one core. Writes train.jsonl, validation.jsonl, eval.jsonl and base/ beside this file;
all random numbers come from SEED. The base model is trained with supervision on answers of which a given share is wrong
on purpose (see `lesson`), so that a verifier has something to filter out. None of its training problems is in any of
the three prompt files.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parent))  # so that it runs from any directory
from task import MAX_NEW_TOKENS, NUMBERS, SIZES, Problem, make_tokenizer, multisets, solutions

SEED = 20240607
MIN_ANSWERS = 6
"""The least number of right answers of a problem in the prompt files, so that coverage can be measured."""
SPLITS = {"eval": 256, "validation": 256, "train": 4096}
"""Lines per prompt file. Settings are chosen on validation; eval is for reported results."""

MISUSE, MISS = 0.40, 0.05
"""Shares of the base model's training answers that use other numbers than given, and that miss the target."""

STEPS, BATCH, WARM_UP = 1500, 128, 50
MATRIX_RATE, OTHER_RATE = 4e-3, 3e-3
"""Peak learning rates: of the layers' matrices (Muon, which needs half the steps of AdamW for the same loss), and of
all other parameters."""

Answers = dict[tuple[int, ...], dict[int, list[str]]]
"""Numbers -> target -> every right answer."""


def split(answers: Answers, rng: random.Random) -> tuple[dict[str, list[Problem]], list[Problem]]:
    """The problems of the prompt files, disjoint, and the other solvable problems, for training the base model."""
    problems = [Problem(numbers, target) for numbers in answers if len(numbers) in SIZES for target in answers[numbers]]
    rng.shuffle(problems)  # in the order of enumeration the first ones have the smallest numbers
    rich = [problem for problem in problems if len(answers[problem.numbers][problem.target]) >= MIN_ANSWERS]
    files, at = {}, 0
    for name, count in SPLITS.items():
        files[name] = rich[at : at + count]
        at += count
    taken = set(rich[:at])
    return files, [problem for problem in problems if problem not in taken]


def lesson(problem: Problem, answers: Answers, rng: random.Random) -> str:
    """One training answer, drawn uniformly among those of its kind.

    Misuse: the target is hit, but with one given number dropped or changed. Miss: the numbers are right, but the value
    is off by one to three. Otherwise, and if no such answer exists for this problem: a right answer.
    """
    draw = rng.random()
    if draw < MISUSE:
        for _ in range(4):
            numbers = list(problem.numbers)
            dropped = numbers.pop(rng.randrange(len(numbers)))
            if rng.random() < 0.75:
                changed = rng.choice(numbers) if rng.random() < 0.5 else rng.choice(NUMBERS)
                if changed == dropped:
                    continue
                numbers.append(changed)
            wrong = answers[tuple(sorted(numbers))].get(problem.target)
            if wrong:
                return rng.choice(wrong)
    elif draw < MISUSE + MISS:
        near = [problem.target + offset for offset in (-3, -2, -1, 1, 2, 3)]
        near = [target for target in near if target in answers[problem.numbers]]
        if near:
            return rng.choice(answers[problem.numbers][rng.choice(near)])
    return rng.choice(answers[problem.numbers][problem.target])


def batches(
    problems: list[Problem], answers: Answers, tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (input ids, labels), both (BATCH, T) int64, padded on the right; labels cover the answers only."""
    # A problem is drawn in proportion to its number of right answers, so that each of these is equally frequent.
    cumulative = list(accumulate(len(answers[problem.numbers][problem.target]) for problem in problems))
    ids = tokenizer.get_vocab()
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    while True:
        rows, labels = [], []
        for problem in rng.choices(problems, cum_weights=cumulative, k=BATCH):
            prompt = [ids[word] for word in problem.prompt.split()]
            answer = [ids[word] for word in lesson(problem, answers, rng).split()] + [eos]
            rows.append(prompt + answer)
            labels.append([-100] * len(prompt) + answer)
        width = max(map(len, rows))
        yield (
            torch.tensor([row + [pad] * (width - len(row)) for row in rows]),
            torch.tensor([row + [-100] * (width - len(row)) for row in labels]),
        )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A random Llama with half a million parameters and untied embeddings."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=256,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    model.generation_config.max_new_tokens = MAX_NEW_TOKENS
    return model


def rate(step: int) -> float:
    """The learning rate as a factor of the peak: linear warm-up, then a cosine down to one hundredth."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, STEPS - WARM_UP)))


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """The optimizers: Muon for the layers' matrices, AdamW for embeddings, head and norms."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.dim() == 2 and ".layers." in name else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, momentum=0.95, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(problems: list[Problem], answers: Answers, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The base model, trained with supervision from random weights."""
    torch.manual_seed(SEED)
    model = make_model(tokenizer)
    stepped = optimizers(model)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in stepped]
    started, smooth = time.monotonic(), 0.0
    stream = batches(problems, answers, tokenizer, random.Random(SEED + 1))
    for step in range(1, STEPS + 1):
        rows, labels = next(stream)
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(stepped, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        smooth += (loss.item() - smooth) * max(0.02, 1 / step)
        if step % 100 == 0 or step == STEPS:
            print(f"step {step}/{STEPS}  loss {smooth:.3f}  {time.monotonic() - started:.0f} s", flush=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="where the files go")
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)  # the order of summation, and so the weights, must not depend on the number of cores

    sizes = range(min(SIZES) - 1, max(SIZES) + 1)  # one fewer as well, since dropping a number is one of the mistakes
    answers: Answers = {numbers: solutions(numbers) for size in sizes for numbers in multisets(size)}
    files, problems = split(answers, random.Random(SEED))
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(problem.line()) + "\n" for problem in lines))
    print(f"{len(problems)} problems for the base; " + ", ".join(f"{name} {len(p)}" for name, p in files.items()))

    tokenizer = make_tokenizer()
    model = train(problems, answers, tokenizer)
    tokenizer.save_pretrained(out / "base")
    model.save_pretrained(out / "base")


if __name__ == "__main__":
    main()
