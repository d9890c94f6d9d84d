"""Prompt, seed and lane of a ticket, as pure functions of its group id and the run's seed.

The k-th train ticket belongs to cycle k // P at place k mod P, where P is the number of train prompts; its group id is
"cycle:place". Each cycle visits all P prompts once, in its own shuffled order. The group ids of evaluations are
"e<version>:<prompt>". Every service computes the same, so Redis only counts tickets.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np

from broker.settings import Lane


@lru_cache(maxsize=4)
def _order(seed: int, cycle: int, prompts: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, cycle]))).permutation(prompts)


def lane_of(group_id: str) -> Lane:
    """The lane of a group."""
    return "eval" if group_id.startswith("e") else "train"


def prompt_of(group_id: str, seed: int, prompts: int) -> int:
    """Index of the prompt that group `group_id` samples; `prompts` is the size of the train set."""
    cycle, place = group_id.split(":")
    if lane_of(group_id) == "eval":
        return int(place)
    return int(_order(seed, int(cycle), prompts)[int(place)])


def seed_of(group_id: str, seed: int) -> int:
    """Sampling seed of a group, 63 bits: the same in every run with this seed, unrelated between groups."""
    digest = hashlib.blake2b(f"{seed}/{group_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
