"""Which prompt a ticket is for, as pure functions of the run's seed: every service computes the same, Redis only
counts.

The k-th train ticket belongs to cycle k // P at place k mod P (its group_id is "cycle:place"); each cycle visits all P
prompts once, in its own shuffled order. Eval group_ids are "e<version>:<prompt>".
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np


@lru_cache(maxsize=4)
def _order(seed: int, cycle: int, prompts: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, cycle]))).permutation(prompts)


def prompt_of(group_id: str, seed: int, prompts: int) -> int:
    """Index of the prompt that group `group_id` samples; `prompts` is the size of the train set."""
    cycle, place = group_id.split(":")
    if cycle.startswith("e"):
        return int(place)
    return int(_order(seed, int(cycle), prompts)[int(place)])


def seed_of(group_id: str, seed: int) -> int:
    """Sampling seed of a group, 63 bits: the same in every run with this seed, unrelated between groups."""
    digest = hashlib.blake2b(f"{seed}/{group_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
