"""report.png: pass@k of the base and the tuned model, and four metrics over the steps that show how training went.

Colours are from Okabe and Ito's palette, which people with any colour vision can tell apart; lines also differ in dash
or marker, for black-and-white prints. matplotlib is imported when a figure is drawn, with its file-only backend.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deploy.reports.summary import Report
from learner.step_record import StepRecord

GREY, BLUE, VERMILION, GREEN, INK = "#6e6e6e", "#0072B2", "#D55E00", "#009E73", "#222222"
SMOOTH = 9
"""Width in steps of the running mean that is drawn over noisy curves."""

STYLE: dict[str, Any] = {
    "font.size": 9.5, "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#999999", "axes.labelcolor": INK,
    "text.color": INK, "xtick.color": INK, "ytick.color": INK, "axes.grid": True, "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7, "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 8.5,
}  # fmt: skip
"""matplotlib settings of all pictures."""


def draw(report: Report, path: Path) -> None:
    """Draw the report into the PNG file `path`. A panel without data says so."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(12.5, 5.6), layout="constrained")
        grid = figure.add_gridspec(2, 4)
        _coverage(figure.add_subplot(grid[:, :2]), report)
        panels = [figure.add_subplot(grid[row, column]) for row in (0, 1) for column in (2, 3)]
        x = np.array([record.step for record in report.steps], dtype=float)
        _curves(panels[0], x, report.steps, "Pass rate of training samples", [("pass_rate", "", BLUE, "-")], low=0)
        _curves(
            panels[1],
            x,
            report.steps,
            "Staleness (versions)",
            [("staleness_mean", "mean", BLUE, "-"), ("staleness_max", "max", GREY, ":")],
            low=0,
        )
        _curves(
            panels[2],
            x,
            report.steps,
            "Effective sample size (share)",
            [("ess_rho_alpha", "ρ^α", BLUE, "-"), ("ess_rho", "ρ", VERMILION, "--"), ("ess_weight", "W", GREEN, "-.")],
            low=0,
            high=1.03,
        )
        _curves(panels[3], x, report.steps, "Mean pseudo-reward E[r]", [("mean_r", "", BLUE, "-")], low=0)
        panels[3].axhline(1.0, color=VERMILION, linewidth=1, linestyle="--")
        panels[3].annotate(
            "r = 1 at the target",
            (0.98, 1.0),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=8,
            color=VERMILION,
        )
        panels[3].set_ylim(0, max(1.15, panels[3].get_ylim()[1]))
        for panel in panels[2:]:
            panel.set_xlabel("optimiser step")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        figure.savefig(temporary, dpi=150, format="png")
        temporary.replace(path)
        plt.close(figure)


def _coverage(axes: Any, report: Report) -> None:
    """pass@k of the base and the tuned model over k, on a logarithmic axis."""
    axes.set_title("pass@k on held-out prompts")
    shown = [
        (report.base, "base", GREY, "--", "o"),
        (report.tuned, "tuned", BLUE, "-", "s"),
    ]
    ks: list[int] = []
    for evaluated, name, colour, dash, marker in shown:
        if evaluated is None or not evaluated.ks:
            continue
        ks = sorted({*ks, *evaluated.ks})
        distinct = evaluated.metrics.get("distinct_correct")
        label = name if distinct is None else f"{name} — {distinct:.1f} distinct correct answers"
        axes.fill_between(evaluated.ks, evaluated.low, evaluated.high, color=colour, alpha=0.14, linewidth=0)
        axes.plot(
            evaluated.ks, evaluated.curve, dash, color=colour, marker=marker, markersize=5, linewidth=2, label=label
        )
    if not ks:
        _nothing(axes, "no evaluation yet")
        return
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("k (samples per prompt)")
    axes.set_ylabel("share of prompts solved")
    axes.legend(loc="lower right", title="band: 95 % bootstrap over prompts", title_fontsize=8, fontsize=9.5)


def _curves(
    axes: Any,
    x: np.ndarray[Any, Any],
    steps: list[StepRecord],
    title: str,
    series: list[tuple[str, str, str, str]],
    *,
    low: float | None = None,
    high: float | None = None,
) -> None:
    """Step metrics over the step `x`: raw values pale, their running mean on top.

    `series` holds (name in metrics.jsonl, label, colour, dash); `low` and `high` are the limits of the y axis.
    """
    axes.set_title(title)
    drawn = False
    for name, label, colour, dash in series:
        y = np.array([getattr(record, name) for record in steps], dtype=float)
        known = np.isfinite(y)
        if not known.any():
            continue
        drawn = True
        axes.plot(x[known], y[known], color=colour, alpha=0.25, linewidth=0.9)
        axes.plot(x[known], running_mean(y[known]), dash, color=colour, linewidth=1.8, label=label or None)
    if not drawn:
        _nothing(axes, "no steps yet")
        return
    axes.set_ylim(low, high)
    if any(label for _, label, _, _ in series):
        axes.legend(loc="best", ncols=len(series), handlelength=2.2, columnspacing=1.0)


def running_mean(y: np.ndarray[Any, Any], width: int = SMOOTH) -> np.ndarray[Any, Any]:
    """Mean over a centred window of `width` values, cut off at both ends; same shape as `y`."""
    half = min(width, len(y)) // 2
    total = np.concatenate([[0.0], np.cumsum(y)])
    first = np.maximum(np.arange(len(y)) - half, 0)
    last = np.minimum(np.arange(len(y)) + half + 1, len(y))
    return np.asarray((total[last] - total[first]) / (last - first))


def _nothing(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set_xticks([])
    axes.set_yticks([])
