"""The report: figures from hand-made files, contradictions refused, nothing invented where something is unknown."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deploy.reports.plots import running_mean
from deploy.reports.report import show, write
from deploy.reports.summary import summarize
from deploy.rundir import run_files
from deploy.rundir.run_files import RecordError
from deploy.rundir.schema import mark_schema


@pytest.fixture(autouse=True)
def run_of_this_release(tmp_path: Path) -> None:
    mark_schema(tmp_path)


KEYS = {
    "base", "tuned", "wall_seconds", "groups_trained", "completions", "duplicates", "lost", "staleness_mean",
    "ess_mean",
}  # fmt: skip


def step(number: int, **more: Any) -> dict[str, Any]:
    return {
        "step": number, "version": number - 1, "time": 100.0 + number, "seconds": 1.0, "groups": 4, "completions": 16,
        "pass_rate": 0.1, "mean_r": 0.5, "staleness_mean": 1.0, "staleness_max": 2, "ess_rho": 0.8,
        "ess_rho_alpha": 0.9, "ess_weight": 0.7, **more,
    }  # fmt: skip


def put(path: Path, rows: list[dict[str, Any]], end: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)


def evaluated(run: Path, version: int, answers: list[list[str]], n: int = 4) -> dict[str, Any]:
    """Raw samples of one evaluation (each prompt's right answers, the rest wrong), and its line without figures."""
    rows = []
    for prompt, right in enumerate(answers):
        samples = [["pass", answer] for answer in right] + [["fail", "x"]] * (n - len(right))
        rows.append({"prompt": prompt, "n": n, "correct": len(right), "distinct": len(set(right)), "samples": samples})
    put(run / "eval" / f"v{version:08d}.jsonl", rows)
    return {"version": version, "step": version, "time": 1.0, "prompts": len(answers), "samples": n}


def finished(run: Path) -> None:
    put(run / "metrics.jsonl", [step(1), step(2, staleness_mean=3.0, groups=12)])
    lines = [evaluated(run, 0, [["a"], []]), evaluated(run, 2, [["a", "a", "b"], ["c"]])]
    put(run / "eval.jsonl", lines)
    run_files.write_json(run / "audit.json", {"committed": 16, "completions": 64, "duplicates": 0, "lost": 0})
    run_files.append_session(run, {"seconds": 40.0})
    run_files.append_session(run, {"seconds": 2.5})


@pytest.mark.slow
def test_the_summary_has_exactly_the_agreed_keys_and_the_right_figures(tmp_path: Path) -> None:
    finished(tmp_path)
    write(summarize(tmp_path), tmp_path)
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert summary.keys() == KEYS
    assert summary["base"].keys() == summary["tuned"].keys() == {
        "pass@1", "pass@16", "pass@64", "pass@128", "distinct_correct",
    }  # fmt: skip
    assert summary["base"]["pass@1"] == pytest.approx(1 / 8)
    assert summary["tuned"]["pass@1"] == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert summary["tuned"]["distinct_correct"] == 1.5
    assert summary["tuned"]["pass@16"] is None  # four samples cannot say
    assert summary["wall_seconds"] == 42.5
    assert (summary["groups_trained"], summary["completions"]) == (16, 64)
    assert summary["staleness_mean"] == 2.5  # 4 groups at 1, 12 at 3
    assert summary["ess_mean"] == 0.9


def test_pass_at_k_is_the_enumerated_probability(tmp_path: Path) -> None:
    finished(tmp_path)
    tuned = summarize(tmp_path).tuned
    assert tuned is not None and tuned.ks == (1, 2, 4)
    exact = (1 - math.comb(1, 2) / math.comb(4, 2) + 1 - math.comb(3, 2) / math.comb(4, 2)) / 2
    assert tuned.curve[1] == pytest.approx(exact)
    assert all(low <= value <= high for low, value, high in zip(tuned.low, tuned.curve, tuned.high, strict=True))


@pytest.mark.slow
def test_the_picture_is_drawn_with_and_without_data(tmp_path: Path) -> None:
    finished(tmp_path)
    _, picture = write(summarize(tmp_path), tmp_path)
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and picture.stat().st_size > 20_000
    bare = tmp_path / "bare"
    mark_schema(bare)
    put(bare / "metrics.jsonl", [{"step": 1, "version": 0, "time": 1.0, "completions": 0, "seconds": 1.0}])
    _, picture = write(summarize(bare), bare)
    assert picture.stat().st_size > 5_000


def test_the_table_shows_base_tuned_and_change(tmp_path: Path) -> None:
    finished(tmp_path)
    console = Console(width=100, record=True)
    show(summarize(tmp_path), console)
    text = console.export_text()
    for word in ("pass@1", "0.125", "0.500", "+0.375", "distinct correct answers", "0 trained twice", "0 lost"):
        assert word in text


def test_what_only_the_broker_knows_is_unknown_without_its_count(tmp_path: Path) -> None:
    put(tmp_path / "metrics.jsonl", [step(1)])
    summary = summarize(tmp_path).summary
    assert summary["lost"] is None and summary["duplicates"] is None
    assert summary["base"] is None and summary["tuned"] is None


def test_figures_that_contradict_the_raw_samples_are_refused(tmp_path: Path) -> None:
    finished(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "eval.jsonl").read_text().splitlines()]
    lines[1]["pass@1"] = 0.9
    put(tmp_path / "eval.jsonl", lines)
    with pytest.raises(RecordError, match=r"version 2 says pass@1 = 0\.90000, its raw samples give 0\.50000"):
        summarize(tmp_path)


def test_counts_that_contradict_their_samples_are_refused(tmp_path: Path) -> None:
    finished(tmp_path)
    path = tmp_path / "eval" / "v00000002.jsonl"
    path.write_text(path.read_text().replace('"correct": 3', '"correct": 4'))
    with pytest.raises(RecordError, match="line 1 says correct"):
        summarize(tmp_path)


def test_an_unknown_verdict_counts_neither_as_right_nor_as_wrong(tmp_path: Path) -> None:
    put(tmp_path / "metrics.jsonl", [step(1)])
    samples = [["pass", "a"], ["fail", "x"], ["error", "y"]]
    put(tmp_path / "eval" / "v00000000.jsonl", [{"n": 2, "correct": 1, "distinct": 1, "samples": samples}])
    put(tmp_path / "eval.jsonl", [{"version": 0, "step": 0, "prompts": 1, "samples": 3}])
    base = summarize(tmp_path).base
    assert base is not None and base.metrics["pass@1"] == 0.5


def test_a_step_trained_again_after_a_crash_replaces_what_was_written_before(tmp_path: Path) -> None:
    rows = [step(1), step(2), step(3, pass_rate=0.9), step(2, pass_rate=0.2), step(3, pass_rate=0.3)]
    put(tmp_path / "metrics.jsonl", rows)
    assert [row.pass_rate for row in run_files.steps(tmp_path)] == [0.1, 0.2, 0.3]
    put(tmp_path / "metrics.jsonl", rows[:4])
    assert [row.step for row in run_files.steps(tmp_path)] == [1, 2]


def test_a_last_line_cut_off_by_a_crash_is_no_error_but_another_one_is(tmp_path: Path) -> None:
    put(tmp_path / "metrics.jsonl", [step(1)], end='{"step": 2, "ti')
    assert len(run_files.steps(tmp_path)) == 1
    put(tmp_path / "metrics.jsonl", [], end='{"step": 2, "ti\n' + json.dumps(step(2)) + "\n")
    with pytest.raises(RecordError, match="line 1 is not JSON"):
        run_files.steps(tmp_path)


def test_nothing_to_report_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="nothing to report"):
        summarize(tmp_path)


def test_the_running_mean_keeps_length_and_constants() -> None:
    import numpy as np

    assert np.allclose(running_mean(np.full(20, 3.0)), 3.0)
    assert running_mean(np.arange(3.0)).tolist() == [0.5, 1.0, 1.5]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"step": 1, "time": 1.0}, "step 1 is no record of an optimiser step: version: Field required"),
        ({**step(7), "pass_ratio": 0.5}, "step 7 is no record of an optimiser step: pass_ratio: Extra inputs"),
        ({**step(7), "groups": "many"}, "step 7 is no record of an optimiser step: groups"),
    ],
)
def test_a_line_that_is_no_record_of_a_step_is_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    put(tmp_path / "metrics.jsonl", [row])
    with pytest.raises(RecordError, match=re.escape(said)):
        run_files.steps(tmp_path)
