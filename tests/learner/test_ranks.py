"""Several ranks are one learner: same gradients, same weights, and checkpoints that any number of ranks resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.learner.learner_rig import save_model

WORKER = Path(__file__).parent / "train" / "gradient_worker.py"
BUDGETS = {"one micro-batch": 4096, "several": 64, "groups that do not fit": 24}
Answer = dict[str, Any]


@pytest.fixture(scope="module")
def answers(torchrun: Callable[..., list[Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """All tasks in three launches: `<ranks> <task>` -> rank 0's answer, and `2 … b` the second rank's."""
    path = tmp_path_factory.mktemp("ranks")
    model = save_model(path / "base")
    by_two, by_one = str(path / "by-two"), str(path / "by-one")
    train = [["train", budget, by_one] for budget in BUDGETS.values()]
    gpg = [["train", budget, by_one, "gpg"] for budget in BUDGETS.values()]
    trained = [*BUDGETS, *(f"gpg, {name}" for name in BUDGETS)]
    plans = [
        (2, [*train, *gpg, ["save", 64, by_two]], [*trained, "save"]),
        (
            1,
            [*train, *gpg, ["save", 64, by_one], ["load", 64, by_two], ["load", 64, by_one]],
            [*trained, "save", "load by two", "load by one"],
        ),
        (2, [["load", 64, by_one], ["load", 64, by_two]], ["load by one", "load by two"]),
    ]
    found: dict[str, Answer] = {}
    for ranks, tasks, names in plans:
        for suffix, part in zip(("", " b"), torchrun(WORKER, ranks, str(model), json.dumps(tasks)), strict=False):
            found |= {f"{ranks} {name}{suffix}": answer for name, answer in zip(names, part, strict=True)}
    return found


def close(left: dict[str, list[float]], right: dict[str, list[float]], tolerance: float) -> None:
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_allclose(left[name], right[name], atol=tolerance, rtol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("budget", BUDGETS)
def test_two_ranks_give_the_gradients_and_the_weights_of_one(answers: dict[str, Answer], budget: str) -> None:
    one = answers[f"1 {budget}"]
    assert max(map(abs, one["gradients"]["lm_head.weight"])) > 1e-4
    for rank in (answers[f"2 {budget}"], answers[f"2 {budget} b"]):
        close(one["gradients"], rank["gradients"], 1e-6)
        np.testing.assert_allclose(one["losses"], rank["losses"], atol=1e-5)
        np.testing.assert_allclose(one["norms"], rank["norms"], rtol=1e-3)
        close(one["weights"], rank["weights"], 2e-3)  # AdamW makes whole steps of rounding in near-zero gradients


@pytest.mark.slow
def test_micro_batches_do_not_change_the_gradient(answers: dict[str, Answer]) -> None:
    for budget in BUDGETS:
        close(answers["1 one micro-batch"]["gradients"], answers[f"1 {budget}"]["gradients"], 1e-6)


@pytest.mark.slow
def test_what_an_objective_needs_to_know_of_the_step_is_the_same_in_all_its_parts(answers: dict[str, Answer]) -> None:
    """GPG scales by the step's groups with both right and wrong answers, however they are spread."""
    whole = answers["1 gpg, one micro-batch"]["gradients"]
    assert max(map(abs, whole["lm_head.weight"])) > 1e-4
    for ranks in (1, 2):
        for budget in BUDGETS:
            close(whole, answers[f"{ranks} gpg, {budget}"]["gradients"], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("saved", ["by one", "by two"])
def test_a_checkpoint_resumes_on_another_number_of_ranks(answers: dict[str, Answer], saved: str) -> None:
    one, two = answers[f"1 load {saved}"], answers[f"2 load {saved}"]
    close(one["gradients"], two["gradients"], 1e-6)
    close(one["weights"], two["weights"], 2e-3)
    np.testing.assert_allclose(one["losses"], two["losses"], atol=1e-5)


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_the_weights_it_had(answers: dict[str, Answer]) -> None:
    """Weights move by about lr = .01 a step and element: two steps after the checkpoint they are near it."""
    saved, resumed = answers["1 save"]["weights"], answers["1 load by one"]["weights"]
    moved = max(np.abs(np.subtract(saved[name], resumed[name])).max() for name in saved)
    assert 1e-3 < moved < 0.05
