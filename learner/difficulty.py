"""Difficulty levels of prompts, by pass rate; thresholds of arXiv 2512.05962. Numbers only; imports nothing.

Two scales share their upper thresholds: `LEVELS` classifies by counted samples, so that it can tell a prompt that was
never solved; `Z_LEVELS` classifies by the estimate Ẑ, which is never 0.
"""

from __future__ import annotations

import math

EASY, MEDIUM, HARD = 0.9, 0.3, 0.1
"""Least pass rate of an easy and a medium prompt, and of a hard one by Ẑ."""
LEVELS: tuple[str, ...] = ("easy", "medium", "hard", "unsolved")
"""By counted samples: pass rate ≥ EASY, ≥ MEDIUM, > 0, and 0."""
Z_LEVELS: tuple[tuple[str, float, float], ...] = (
    ("easy", EASY, math.inf),
    ("medium", MEDIUM, EASY),
    ("hard", HARD, MEDIUM),
    ("hardest", 0.0, HARD),
)
"""By Ẑ, the base model's pass rate as far as it is known: (name, least, limit)."""


def level(samples: int, correct: int) -> str:
    """The level, one of LEVELS, of a prompt with `correct` right answers among `samples` ≥ 1."""
    rate = correct / samples
    if rate >= EASY:
        return "easy"
    if rate >= MEDIUM:
        return "medium"
    return "hard" if correct else "unsolved"
