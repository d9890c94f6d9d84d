"""The sequences of canaries: how they are chosen and scored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from broker.queue.wire import float32
from broker.weights.canary import ANSWER_TOKENS, PROMPT_TOKENS, SEQUENCES
from learner.batch.packing import Row, lay_out
from learner.batch.samples import Ids, Samples
from learner.model.model import Scorer, score
from learner.ranks import Ranks
from learner.weights.tensor_groups import reshard


def halves(prompts: Sequence[Ids]) -> list[tuple[Ids, Ids]]:
    """Sequences for the first canary, before anything was sampled: the second half of each prompt is its answer."""
    return [
        bounded(prompt[: max(1, len(prompt) // 2)], prompt[len(prompt) // 2 :])
        for prompt in [one for one in prompts if len(one)][:SEQUENCES]
    ]


def bounded(prompt: Ids, answer: Ids) -> tuple[Ids, Ids]:
    """The end of the prompt and the beginning of the answer, cut to a canary's limits."""
    return prompt[-PROMPT_TOKENS:], answer[:ANSWER_TOKENS]


def score_sequences(policy: Scorer, sequences: Sequence[tuple[Ids, Ids]], ranks: Ranks) -> list[bytes]:
    """log π of each answer token as float32 bytes, computed as in training. Collective: the same on every rank."""
    rows = [Row(at, (0,), len(prompt) + len(answer)) for at, (prompt, answer) in enumerate(sequences)]
    prompts, answers = [prompt for prompt, _ in sequences], [[answer] for _, answer in sequences]
    layout = lay_out(rows, prompts, answers, list(range(len(rows)))).to(ranks.device)
    with torch.no_grad():
        found = score(policy, layout).cpu().numpy()
    reshard(policy)
    return [float32(found[at, : len(answer)]) for at, (_, answer) in enumerate(sequences)]


def sequence_of(samples: Samples, index: int) -> tuple[Ids, Ids]:
    """(prompt ids, answer ids) of one of a step's samples."""
    group = int(np.searchsorted(samples.first, index, side="right")) - 1
    return samples.prompts[group], samples.completions[group][index - samples.first[group]]
