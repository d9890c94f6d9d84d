"""Made-up sweeps with known metrics, on which reports are tested."""

from __future__ import annotations

from typing import Any

import numpy as np

from deploy.sweeps.plan import Point, points


def results(
    words: list[str],
    *,
    staleness: list[int] | None = None,
    corrections: list[str] | None = None,
    seeds: int = 3,
    prompts: int = 100,
    n: int = 128,
    steps: int = 60,
) -> dict[str, Any]:
    """results.json of a sweep whose precision rises and whose coverage falls from point to point."""
    draw = np.random.default_rng(0)
    difficulty = draw.beta(0.5, 3.0, prompts)
    chosen: list[Point | None] = [None, *points(words, staleness or [], corrections or [])]
    runs = []
    for seed in range(seeds):
        for place, point in enumerate(chosen):
            sharp = place / len(chosen)
            rate = np.clip(difficulty ** (1 + sharp) * (1 + 2.5 * sharp), 0, 0.97)
            if point is not None and point.correction == "none" and point.staleness:
                rate = rate / (1 + point.staleness / 8)
            told = []
            for prompt in range(prompts):
                correct = int(draw.binomial(n, rate[prompt]))
                kinds = max(1, round(12 * (1 - sharp)))
                counts = draw.multinomial(correct, draw.dirichlet(np.full(kinds, 1.5)))
                told.append([prompt, n, sorted((int(c) for c in counts if c), reverse=True)])
            curves = {}
            if point is not None:
                time = np.arange(1, steps + 1) / steps
                noise = draw.normal(0, 0.02, (4, steps))
                curves = {
                    "pass_rate": list(0.1 + 0.2 * (1 + sharp) * time + noise[0]),
                    "entropy": list(1.2 - 0.8 * sharp * time + noise[1]),
                    "ess_rho_alpha": list(0.95 - 0.3 * sharp + noise[2]),
                    "mean_r": list(0.4 + 0.3 * time + noise[3]),
                }
            runs.append({
                "name": f"run-{place}-{seed}", "seed": seed, "point": point.plain() if point else None,
                "seconds": 90.0, "version": steps, "prompts": told, "curves": curves,
            })  # fmt: skip
    return {
        "schema": 1, "name": "made-up", "commands": ["sieve sweep made-up.yaml"], "unfinished": [],
        "machine": {"processor": "x86_64", "cores": 2, "python": "3.11"}, "runs": runs,
        "settings": {
            "sampling": {"group_size": 8}, "schedule": {"steps": steps, "groups_per_step": 64}, "evaluation": {},
            "learner": {}, "model": {"path": "base", "dtype": "float32"}, "data": {},
        },
    }  # fmt: skip
