"""The report of one run as people get it: a table in the terminal, report/summary.json and report/report.png."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from deploy.reports.plots import draw
from deploy.reports.summary import Evaluation, Report
from deploy.rundir import run_files

TABLE_KS = (1, 4, 16, 64, 128)


def show(report: Report, console: Console) -> None:
    """Print the table base → tuned, and the counts of the run."""
    if report.base is None:
        console.print("no evaluation: data.eval is not set, or the base was not evaluated yet")
    else:
        console.print(_table(report.base, report.tuned))

    def text(name: str, digits: int = 0) -> str:
        value = report.summary[name]
        return "unknown" if value is None else f"{value:,.{digits}f}"

    console.print(
        f"{len(report.steps)} steps in {text('wall_seconds')} s, {text('groups_trained')} groups, "
        f"{text('completions')} completions; {text('duplicates')} trained twice, {text('lost')} lost; "
        f"staleness {text('staleness_mean', 2)} versions, effective sample size {text('ess_mean', 3)}",
        highlight=False,
    )


def _table(base: Evaluation, tuned: Evaluation | None) -> Table:
    title = f"{base.prompts} held-out prompts" + (f", version {tuned.version} (step {tuned.step})" if tuned else "")
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for name in ("base", "tuned", "change"):
        table.add_column(name, justify="right")
    for name in [*(f"pass@{k}" for k in TABLE_KS), "distinct_correct"]:
        if name not in base.metrics:
            continue
        before, after = base.metrics[name], tuned.metrics.get(name) if tuned else None
        label, digits = (name, 3) if name.startswith("pass@") else ("distinct correct answers", 2)
        cells = ["–", "–"] if after is None else [f"{after:.{digits}f}", f"{after - before:+.{digits}f}"]
        table.add_row(label, f"{before:.{digits}f}", *cells)
    return table


def write(report: Report, run: Path) -> tuple[Path, Path]:
    """Write report/summary.json and report/report.png into the directory `run`. Returns their paths."""
    summary, picture = run / "report" / "summary.json", run / "report" / "report.png"
    run_files.write_json(summary, report.summary)
    draw(report, picture)
    return summary, picture
