"""pass@k is unbiased, intervals cover, diversity is measured on right answers, levels migrate."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.difficulty import LEVELS, level
from learner.evaluation.stats import (
    PromptResult,
    bootstrap,
    bootstrap_difference,
    distinct,
    distinct_at_k,
    gini_simpson,
    migration,
    pass_at_k,
    per_prompt,
    perplexity,
    shannon,
    summarise,
)


@given(n=st.integers(1, 8), data=st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert float(pass_at_k(n, c, k)) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    """The expectation over c ~ Binomial(n, p) is 1 − (1−p)^k, exactly."""
    n, p = 256, 0.013
    c = np.arange(n + 1)
    log_choose = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in c])
    weights = np.exp(log_choose + c * np.log(p) + (n - c) * np.log1p(-p))
    for k in (1, 4, 16, 64, 128, 256):
        assert float(weights @ pass_at_k(n, c, k)) == pytest.approx(1 - (1 - p) ** k, rel=1e-9)


def test_pass_at_k_refuses_more_than_it_has() -> None:
    with pytest.raises(ValueError, match="pass@9"):
        pass_at_k([10, 8], [1, 1], 9)
    with pytest.raises(ValueError):
        pass_at_k(4, 5, 2)
    with pytest.raises(ValueError):
        pass_at_k(4, 1, 0)


@pytest.mark.slow
def test_bootstrap_intervals_cover_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        found = bootstrap(random.random(60) < 0.3, resamples=200, seed=trial)
        covered += found.low <= 0.3 <= found.high
    # 95 % nominal; 200 trials have a binomial error of 1.5 %, and 60 problems make percentile intervals slightly short.
    assert 0.90 <= covered / 200 <= 0.99


def test_bootstrap_over_seeds_is_wider_when_seeds_disagree() -> None:
    random = np.random.default_rng(1)
    problems = random.random(200)
    agree = np.stack([problems] * 4)
    disagree = agree + np.array([-0.3, -0.1, 0.1, 0.3])[:, None]
    narrow, wide = bootstrap(agree), bootstrap(disagree)
    assert narrow.mean == pytest.approx(wide.mean)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert bootstrap(agree) == narrow


def test_a_paired_difference_forgets_the_problems_own_difficulty() -> None:
    before = np.linspace(0, 0.9, 50)
    found = bootstrap_difference(before + 0.1, before)
    assert (found.low, found.mean, found.high) == pytest.approx((0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match="same problems"):
        bootstrap_difference(before, before[:3])
    with pytest.raises(ValueError):
        bootstrap(np.zeros((0, 3)))


def test_diversity_counts_kinds_of_right_answers() -> None:
    assert distinct(["a", "a", "b"]) == 2
    assert shannon(["a", "b", "c", "d"]) == pytest.approx(math.log(4))
    assert shannon(["a"] * 9) == shannon([]) == 0
    assert gini_simpson(["a", "b"]) == 1
    assert gini_simpson(["a", "a", "b", "b"]) == pytest.approx(1 - 4 / 12)
    assert gini_simpson(["a"]) == gini_simpson([]) == 0


@given(answers=st.lists(st.sampled_from("abc"), max_size=6), wrong=st.integers(0, 3), data=st.data())
def test_distinct_at_k_is_the_mean_over_subsets(answers: list[str], wrong: int, data: st.DataObject) -> None:
    n = len(answers) + wrong
    if n == 0:
        return
    k = data.draw(st.integers(1, n))
    subsets = list(combinations([*answers, *[""] * wrong], k))
    expected = sum(len(set(subset) - {""}) for subset in subsets) / len(subsets)
    assert distinct_at_k(n, answers, k) == pytest.approx(expected, abs=1e-9)


def test_levels_and_migration() -> None:
    assert [level(100, c) for c in (100, 90, 89, 30, 29, 1, 0)] == [
        "easy",
        "easy",
        "medium",
        "medium",
        "hard",
        "hard",
        "unsolved",
    ]
    before = [PromptResult(0, 10, ("a",)), PromptResult(1, 10, ())]
    after = [PromptResult(1, 10, ("b",) * 5), PromptResult(0, 10, ())]
    table = migration(before, after)
    assert table["hard"]["unsolved"] == table["unsolved"]["medium"] == 1
    assert sum(table[origin][end] for origin in LEVELS for end in LEVELS) == 2
    with pytest.raises(ValueError, match="same prompts"):
        migration(before, after[:1])


def test_perplexity_is_per_token() -> None:
    assert perplexity(-10 * math.log(7), 10) == pytest.approx(7)
    with pytest.raises(ValueError):
        perplexity(0.0, 0)


def test_a_summary_holds_every_k_it_can_and_no_other() -> None:
    results = [PromptResult(0, 16, ("a", "a", "b")), PromptResult(1, 20, ())]
    found = summarise(results)
    assert {name for name in found if name.startswith("pass@")} == {"pass@1", "pass@2", "pass@4", "pass@8", "pass@16"}
    assert found["pass@1"] == pytest.approx(3 / 32)
    assert found["pass@16"] == pytest.approx(0.5)
    assert found["distinct_correct"] == 1
    assert found["hard"] == found["unsolved"] == 1
    assert per_prompt(results, lambda result: result.correct).tolist() == [3, 0]
    with pytest.raises(ValueError, match="without prompts"):
        summarise([])
    with pytest.raises(ValueError):
        PromptResult(0, 1, ("a", "b"))
