"""A sweep's report: metrics recomputed from raw counts, the same pictures from the same data, one page that needs
nothing else."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.reports.eval_stats import Counted, difference, estimates, migrations
from deploy.rundir.run_files import RecordError
from deploy.sweeps.html_report import main_table, migration_table, summary, write, write_document
from deploy.sweeps.plots import Scene
from deploy.sweeps.results import is_sweep, load
from deploy.sweeps.runner import MANIFEST, SweepConflict, write_manifest
from learner.evaluation.stats import pass_at_k
from tests.deploy.sweeps.sweep_cases import results


def put(path: Path, value: dict[str, Any]) -> Path:
    path.write_text(json.dumps(value))
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return put(tmp_path / "results.json", results(["alpha=0,.9", "rloo"], seeds=2, prompts=12, n=16, steps=9))


def test_metrics_are_those_of_the_raw_counts(small: Path) -> None:
    found = load(small)
    told = summary(Scene.of(found))
    raw = [run for run in json.loads(small.read_text())["runs"] if run["point"] and run["point"]["key"] == "rloo"]
    n = [[n for _, n, _ in run["prompts"]] for run in raw]
    correct = [[sum(answers) for _, _, answers in run["prompts"]] for run in raw]
    rloo = next(point for point in told["points"] if point["key"] == "rloo")
    for k in (1, 4, 16):
        assert rloo["metrics"][f"pass@{k}"][0] == pytest.approx(float(pass_at_k(n, correct, k).mean()), abs=1e-6)
    assert rloo["metrics"]["distinct_correct"][0] == pytest.approx(
        np.mean([[len(answers) for _, _, answers in run["prompts"]] for run in raw]), abs=1e-6
    )
    assert sum(sum(row.values()) for row in rloo["migration"].values()) == pytest.approx(12)
    for point in told["points"]:
        for mean, low, high in point["metrics"].values():
            assert low <= mean <= high


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r", "  =", "＝"])
def test_a_label_is_text_in_a_spreadsheet_and_on_a_page(small: Path, tmp_path: Path, start: str) -> None:
    raw = json.loads(small.read_text())
    hostile = f"{start}HYPERLINK(1)|<script>\n# \x1b[2J"
    for run in raw["runs"]:
        if run["point"] and run["point"]["key"] == "rloo":
            run["point"] |= {"key": hostile, "label": hostile}
    raw["commands"] = ["sieve sweep\n\n# title"]
    found = load(put(tmp_path / "results.json", raw))
    from deploy.sweeps.html_report import markdown, prompts_csv

    cells = [cell for row in csv.reader(io.StringIO(prompts_csv(found))) for cell in row if "HYPERLINK" in cell]
    assert cells and all(cell.startswith("'") and cell.isprintable() for cell in cells)
    page = markdown(Scene.of(found), [], tmp_path / "page.md", tmp_path / "results.json")
    assert "<script>" not in page and "\x1b" not in page and "\n# title" not in page
    rows = [line for line in page.splitlines() if "HYPERLINK" in line]
    assert rows and all("1)\\|" in row for row in rows)


def test_the_csv_holds_every_count(small: Path) -> None:
    found = load(small)
    from deploy.sweeps.html_report import prompts_csv

    rows = list(csv.DictReader(io.StringIO(prompts_csv(found))))
    assert len(rows) == (1 + 3) * 2 * 12
    given = found.points[1].evaluations[0][3]
    row = next(r for r in rows if r["point"] == "alpha=0.9" and r["seed"] == "0" and r["prompt"] == "3")
    assert (int(row["n"]), int(row["correct"]), int(row["distinct"])) == (
        given.n, sum(given.answers), len(given.answers),
    )  # fmt: skip


@pytest.mark.slow
def test_a_page_needs_nothing_but_itself_and_the_document_is_made_again_from_what_is_beside_it(
    small: Path, tmp_path: Path
) -> None:
    assert is_sweep(small)
    written = write(load(small), tmp_path / "report")
    assert {path.name for path in written} == {
        "frontier.png", "pass_at_k.png", "difficulty.png", "training.png", "results.json", "summary.json",
        "prompts.csv", "index.html",
    }  # fmt: skip
    text = (tmp_path / "report" / "index.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", text) and "<script" not in text
    document = tmp_path / "docs" / "frontier.md"
    write_document(load(small), document)
    first = {path: path.read_bytes() for path in [document, *document.with_suffix("").iterdir()]}
    document.with_suffix(".notes.md").write_text("What a person wrote.")
    write_document(load(document.with_suffix("") / "results.json"), document)
    assert "What a person wrote." in document.read_text()
    for path, content in first.items():
        assert path == document or path.read_bytes() == content, path
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        assert (document.parent / target).is_file(), target


@pytest.mark.slow
def test_a_study_shows_staleness_and_the_fresh_point_belongs_to_every_correction(tmp_path: Path) -> None:
    made = results(["alpha=.5"], staleness=[0, 16], corrections=["sequence", "none"], seeds=1, prompts=8, n=8, steps=3)
    found = load(put(tmp_path / "results.json", made))
    assert found.is_study
    from deploy.sweeps.plots import _lines

    lines = _lines(found.points)
    assert {key: [outcome.key for outcome in line] for key, line in lines.items()} == {
        ("alpha=0.5", "sequence"): ["alpha=0.5 @0 sequence", "alpha=0.5 @16 sequence"],
        ("alpha=0.5", "none"): ["alpha=0.5 @0 sequence", "alpha=0.5 @16 none"],
    }
    names = {path.name for path in write(found, tmp_path / "report")}
    assert "staleness.png" in names and "frontier.png" not in names


def test_the_table_of_migrations_says_what_moves_by_chance(small: Path) -> None:
    scene = Scene.of(load(small))
    head, rows = migration_table(scene)
    assert rows[0][0] == "base, another seed" and len(rows) == 1 + 3
    assert all(len(row) == len(head) for row in [*rows, *main_table(scene)[1][:0]])
    assert [row[0] for row in main_table(scene)[1]] == ["base", "alpha=0", "alpha=0.9", "rloo"]


def test_paired_differences_and_migrations_of_a_thing_with_itself_are_nothing() -> None:
    given = [[Counted(0, 8, (3, 1)), Counted(1, 8, ()), Counted(2, 8, (8,))]]
    same = difference(given, given, 4)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
    moved = migrations(given, given)
    assert {(a, b) for a, row in moved.items() for b, count in row.items() if count} == {
        ("medium", "medium"), ("unsolved", "unsolved"), ("easy", "easy"),
    }  # fmt: skip


def test_evaluations_of_other_prompts_are_never_averaged() -> None:
    with pytest.raises(RecordError, match="different prompts"):
        estimates([[Counted(0, 4, ())], [Counted(1, 4, ())]])


def test_a_sweep_without_a_finished_run_says_how_to_go_on(tmp_path: Path) -> None:
    made = results(["rloo"], seeds=1, prompts=2, n=4, steps=1)
    made["runs"] = made["runs"][:1]
    with pytest.raises(RecordError, match="continues it"):
        load(put(tmp_path / "results.json", made))


def test_a_sweep_is_extended_by_points_and_seeds_and_refuses_other_settings(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    from deploy.config.tree import Config
    from deploy.sweeps.plan import plan, points

    config = Config.model_validate(tree)
    directory = config.run.directory / "trial"
    write_manifest(directory, config, plan(config, "trial", points(["grpo"]), 1), "sieve sweep a")
    write_manifest(directory, config, plan(config, "trial", points(["grpo", "rloo"]), 2), "sieve sweep b")
    found = json.loads((directory / MANIFEST).read_text())
    assert [run["name"] for run in found["runs"]] == [
        "base-s0", "grpo-s0", "rloo-s0", "base-s1", "grpo-s1", "rloo-s1",
    ]  # fmt: skip
    assert found["commands"] == ["sieve sweep a", "sieve sweep b"]
    tree["schedule"]["steps"] = 21
    other = Config.model_validate(tree)
    with pytest.raises(SweepConflict, match=r"schedule\.steps was 20, now 21"):
        write_manifest(directory, other, plan(other, "trial", points(["grpo"]), 1), "sieve sweep c")


def extended(directory: Path, tree: dict[str, Any]) -> None:
    from deploy.config.tree import Config
    from deploy.sweeps.plan import plan, points

    config = Config.model_validate(tree)
    write_manifest(directory, config, plan(config, "trial", points(["grpo"]), 1), "sieve sweep")


def test_a_sweep_goes_on_where_its_checkout_has_moved_to_unless_model_or_prompts_have_changed(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    extended(tmp_path / "trial", tree)
    moved = shutil.copytree(tmp_path, tmp_path.with_name("moved"))
    tree["model"]["path"] = str(moved / "model")
    tree["data"] = {name: str(moved / f"{name}.jsonl") for name in ("train", "eval")}
    tree["run"] |= {"directory": str(moved / "runs"), "seed": 7}
    extended(moved / "trial", tree)
    prompts = (moved / "train.jsonl").read_text()
    (moved / "train.jsonl").write_text(prompts.replace("p1", "q1"))
    with pytest.raises(SweepConflict, match=r"data\.train was"):
        extended(moved / "trial", tree)
    (moved / "train.jsonl").write_text(prompts)
    (moved / "model" / "model.safetensors").write_bytes(b"trained")
    with pytest.raises(SweepConflict, match=r"model\.path was"):
        extended(moved / "trial", tree)


def test_a_sweep_of_an_older_release_goes_on_with_the_defaults_of_what_it_did_not_know(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    extended(tmp_path / "trial", tree)
    manifest = tmp_path / "trial" / MANIFEST
    old = json.loads(manifest.read_text())
    del old["contents"], old["settings"]["data"]["chat"], old["settings"]["learner"]["partition"]
    put(manifest, old)
    extended(tmp_path / "trial", tree)
    put(manifest, old)
    tree["learner"] = {"partition": {"mode": "group"}}
    with pytest.raises(SweepConflict, match=r"learner\.partition\.mode was 'pooled', now 'group'"):
        extended(tmp_path / "trial", tree)
    put(manifest, old | {"settings": old["settings"] | {"unheard_of": {}}})
    with pytest.raises(SweepConflict, match="unheard_of"):
        extended(tmp_path / "trial", tree)


DOCUMENTS = sorted((Path(__file__).parents[3] / "docs").glob("*/results.json"))


@pytest.mark.slow
@pytest.mark.parametrize("raw", DOCUMENTS, ids=lambda path: path.parent.name)
def test_committed_documents_say_what_their_committed_raw_counts_say(raw: Path, tmp_path: Path) -> None:
    committed = raw.parent.with_suffix(".md")
    document = tmp_path / "docs" / committed.name
    document.parent.mkdir()
    notes = committed.with_suffix(".notes.md")
    if notes.is_file():
        document.with_suffix(".notes.md").write_text(notes.read_text())
    write_document(load(raw), document)
    assert document.read_text() == committed.read_text()
