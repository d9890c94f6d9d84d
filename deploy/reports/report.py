"""The report of one run: a table for the terminal, report/summary.json and report/report.png."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from deploy.reports.plots import draw
from deploy.reports.summary import Report
from deploy.rundir import run_files

TABLE_KS = (1, 4, 16, 64, 128)


def show(report: Report, console: Console) -> None:
    """The table base → tuned and the run's own account."""
    base, tuned = report.base, report.tuned
    if base is None:
        console.print("no evaluation: data.eval is not set, or the base was not evaluated yet")
    else:
        title = f"{base.prompts} held-out prompts" + (f", version {tuned.version} (step {tuned.step})" if tuned else "")
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column("")
        for name in ("base", "tuned", "change"):
            table.add_column(name, justify="right")
        for name in [*(f"pass@{k}" for k in TABLE_KS), "distinct_correct"]:
            if name not in base.figures:
                continue
            before, after = base.figures[name], tuned.figures.get(name) if tuned else None
            label, digits = (name, 3) if name.startswith("pass@") else ("distinct correct answers", 2)
            cells = ["–", "–"] if after is None else [f"{after:.{digits}f}", f"{after - before:+.{digits}f}"]
            table.add_row(label, f"{before:.{digits}f}", *cells)
        console.print(table)
    s = report.summary

    def text(name: str, digits: int = 0) -> str:
        return "unknown" if s[name] is None else f"{s[name]:,.{digits}f}"

    console.print(
        f"{len(report.steps)} steps in {text('wall_seconds')} s, {text('groups_trained')} groups, "
        f"{text('completions')} completions; "
        f"{text('duplicates')} trained twice, {text('lost')} lost; staleness {text('staleness_mean', 2)} versions, "
        f"effective sample size {text('ess_mean', 3)}",
        highlight=False,
    )


def write(report: Report, run: Path) -> tuple[Path, Path]:
    """report/summary.json and report/report.png of the run; their paths."""
    summary, picture = run / "report" / "summary.json", run / "report" / "report.png"
    run_files.write_json(summary, report.summary)
    draw(report, picture)
    return summary, picture
