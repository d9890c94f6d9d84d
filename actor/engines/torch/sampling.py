"""Sampling of tokens from the policy: random numbers that belong to a completion, and inverse-CDF sampling.

A completion's random numbers depend only on its ticket's seed and its idx, not on the batch, the actor or the attempt.
A ticket that is sampled again after an actor died thus gets the same numbers, so the loss of completions (mostly the
long ones) cannot bias the training data.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch


def uniforms(seed: int, idx: int, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """`count` independent uniforms in [0, 1 − 2⁻⁵³], float64, one per token, from a counter-based Philox stream."""
    key = hashlib.blake2b(f"{seed}/{idx}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(count)


def draw(logits: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample one token per row at temperature 1, with its log-prob.

    `logits` (n, vocabulary) of any floating type; `uniform` (n,) float64 in [0, 1). Returns the tokens (n,) int64 and
    log π(token), float32: log_softmax of the raw logits. The CDF is accumulated in float64, so a token's chance is its
    float32 probability to within 1e-12 at any vocabulary size, and tokens of probability 0 are never drawn.
    """
    logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    cdf = torch.cumsum(logprobs.exp(), dim=-1, dtype=torch.float64)
    # The total is 1 only up to rounding: scaling the uniform by it keeps the last token's share right and the index
    # in range.
    aim = (uniform * cdf[:, -1]).unsqueeze(1)
    tokens = torch.searchsorted(cdf, aim, right=True).clamp_(max=logits.shape[-1] - 1)
    return tokens.squeeze(1), logprobs.gather(1, tokens).squeeze(1)
