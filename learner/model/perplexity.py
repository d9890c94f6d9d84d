"""Log-probabilities under a base model of outputs that another model sampled.

One process and one device; for evaluation, not for training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from learner.batch.packing import Shape, lay_out, plan
from learner.model.model import Scorer, load, score

Ids = NDArray[np.int32]


def base_log_probs(
    model: Path, prompts: Sequence[Ids], outputs: Sequence[Sequence[Ids]], *, dtype: torch.dtype, budget: int
) -> list[NDArray[np.float64]]:
    """Σ_t log π_b(y_t) of each output, nats: one float64 array per prompt, in the order of `outputs[prompt]`.

    `model` is a Hugging Face directory, computed in `dtype`, `budget` padded tokens at once. Empty outputs give 0.
    Raises ModelUnusable.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scorer = Scorer(load(model, dtype)).to(device)
    found = [np.zeros(len(given)) for given in outputs]
    # Prompts one at a time: their outputs share it, and what is held at once stays small.
    for prompt, given, into in zip(prompts, outputs, found, strict=True):
        kept = [index for index, ids in enumerate(given) if len(ids)]
        ids = [given[index] for index in kept]
        shape = Shape(len(prompt), tuple(len(output) for output in ids))
        for rows in plan([shape], budget, row_tokens=0).micro_batches:
            layout = lay_out(rows, [prompt], [ids], [0]).to(device)
            with torch.no_grad():
                sums = score(scorer, layout).double().sum(1).cpu().numpy()
            into[[kept[sample] for sample in layout.samples.tolist()]] = sums
    return found
