"""Drawing tokens from the policy itself: uniforms that belong to a completion, and inverse-CDF sampling. No model here.

A completion's uniforms depend on its ticket's seed and its idx alone — not on the batch it shares, the actor or the
attempt. A ticket that is sampled again after an actor died thus meets the same noise: which completions were lost (the
long ones, mostly) cannot bias what is trained on.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch


def uniforms(seed: int, idx: int, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """`count` independent uniforms in [0, 1 − 2⁻⁵³], float64: one per token, from a counter-based Philox stream."""
    key = hashlib.blake2b(f"{seed}/{idx}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(count)


def draw(logits: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample one token per row at temperature 1 and say how probable it was.

    `logits` (n, vocabulary) of any floating type; `uniform` (n,) float64 in [0, 1). Returns the tokens (n,) int64 and
    log π(token), float32: log_softmax of the raw logits. The CDF is accumulated in float64, so a token's chance is its
    float32 probability to within 1e-12 at any vocabulary size, and tokens of probability 0 are never drawn.
    """
    logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    cdf = torch.cumsum(logprobs.exp(), dim=-1, dtype=torch.float64)
    # The total is 1 only up to rounding: scaling the uniform by it keeps the last share right and the index in range.
    aim = (uniform * cdf[:, -1]).unsqueeze(1)
    tokens = torch.searchsorted(cdf, aim, right=True).clamp_(max=logits.shape[-1] - 1)
    return tokens.squeeze(1), logprobs.gather(1, tokens).squeeze(1)
