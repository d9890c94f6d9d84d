"""Pictures of a sweep: the coverage–precision frontier, pass@k, training, difficulty, and the staleness study.

An objective has the same colour and marker in all pictures. α-DPG goes from dark to light with α, in an order that is
kept in grey; the baselines have the colours of Okabe and Ito. Error bars and bands are 95 % intervals over problems and
seeds. matplotlib is imported when a picture is drawn, with the backend that only writes files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.reports.eval_stats import difference, estimates
from deploy.reports.plots import GREY, INK, STYLE, running_mean
from deploy.sweeps.results import Outcome, Results
from learner.difficulty import LEVELS
from learner.evaluation.stats import Estimate

BASELINES = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8B0000", "#000000")
MARKERS = ("s", "^", "D", "v", "P", "X", "*")
LEVEL_COLOURS = ("#0072B2", "#56B4E9", "#E69F00", "#4d4d4d")
"""From easy to unsolved; neighbours also differ in brightness, for a print in grey."""
PANELS = (
    ("pass_rate", "Pass rate of training samples"),
    ("entropy", "Entropy (nats per token)"),
    ("ess_rho_alpha", "Effective sample size of ρ^α (share)"),
    ("mean_r", "Mean pseudo-reward Ê[r]"),
)


@dataclass(frozen=True)
class Look:
    """The style of one point in all pictures."""

    colour: Any
    marker: str
    dash: str = "-"


@dataclass(frozen=True)
class Scene:
    """Results, and what several pictures need of them, computed once."""

    results: Results
    base: dict[str, Estimate]
    found: dict[str, dict[str, Estimate]]
    change: dict[str, dict[str, Estimate]]
    """Per point: the paired difference of each pass@k to the base model."""
    looks: dict[str, Look]
    ks: list[int]

    @classmethod
    def of(cls, results: Results) -> Scene:
        base = estimates(results.base.evaluations)
        found = {outcome.key: estimates(outcome.evaluations) for outcome in results.points}
        shared = set(base).intersection(*found.values())
        ks = sorted(int(name[5:]) for name in shared if name.startswith("pass@"))
        change = {
            outcome.key: {f"pass@{k}": difference(outcome.evaluations, results.base_of(outcome), k) for k in ks}
            for outcome in results.points
        }
        return cls(results, base, found, change, looks(results.points), ks)

    @property
    def k(self) -> int:
        """The largest k for which every evaluation has enough samples."""
        return self.ks[-1]


def looks(points: Sequence[Outcome]) -> dict[str, Look]:
    """The style of each point, by its key; corrections differ in the dash of the line."""
    import matplotlib

    ramp = matplotlib.colormaps["cividis"]
    labels = list(dict.fromkeys(outcome.point["label"] for outcome in points if outcome.point))
    alphas = [label for label in labels if label.startswith("alpha=")]
    others = [label for label in labels if label not in alphas]
    by_label = {label: Look(ramp(0.9 * i / max(1, len(alphas) - 1)), "o") for i, label in enumerate(alphas)}
    for i, label in enumerate(others):
        by_label[label] = Look(BASELINES[i % len(BASELINES)], MARKERS[i % len(MARKERS)])
    found = {}
    for outcome in points:
        assert outcome.point is not None
        look = by_label[outcome.point["label"]]
        dash = "--" if outcome.point["correction"] == "none" else "-"
        found[outcome.key] = Look(look.colour, look.marker, dash)
    return found


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(width, height), layout="constrained")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        # No date and no version inside: the same results give the same bytes.
        figure.savefig(temporary, dpi=150, format="png", metadata={"Software": None})
        temporary.replace(path)
        plt.close(figure)


def draw_frontier(scene: Scene, path: Path) -> None:
    """pass@k_max (coverage) against pass@1 (precision), with error bars both ways.

    The bars of an objective are those of its paired difference to the base model, because the choice of problems moves
    all points alike. The pale bars of the base model itself show the uncertainty of the picture as a whole.
    """
    with _figure(path, 8.2, 5.8) as figure:
        axes = figure.add_subplot()
        axes.set_title("Coverage against precision on held-out prompts")
        chain = [outcome.key for outcome in scene.results.points if scene.looks[outcome.key].marker == "o"]
        axes.plot(
            [scene.found[key]["pass@1"].mean for key in chain],
            [scene.found[key][f"pass@{scene.k}"].mean for key in chain],
            "-", color="#bbbbbb", linewidth=1.2, zorder=1,
        )  # fmt: skip
        everything = [("base", scene.base, Look(INK, "*"))]
        everything += [(key, scene.found[key], scene.looks[key]) for key in scene.found]
        for key, found, look in everything:
            x, y = found["pass@1"], found[f"pass@{scene.k}"]
            base = key == "base"
            spread = (x, y) if base else (scene.change[key]["pass@1"], scene.change[key][f"pass@{scene.k}"])
            axes.errorbar(
                x.mean, y.mean, xerr=_error(spread[0]), yerr=_error(spread[1]), fmt=look.marker, color=look.colour,
                ecolor="#cfcfcf" if base else look.colour, markersize=13 if base else 8, markeredgecolor="white",
                markeredgewidth=0.8, elinewidth=3 if base else 1.1, capsize=0 if base else 2.5, label=key,
                zorder=1 if base else 3,
            )  # fmt: skip
        _name_points(axes, {key: (one["pass@1"].mean, one[f"pass@{scene.k}"].mean) for key, one, _ in everything})
        axes.set_xlabel("precision: pass@1")
        axes.set_ylabel(f"coverage: pass@{scene.k}")
        seeds = len(scene.results.base.seeds)
        over = f"problems and {seeds} seeds" if seeds > 1 else "problems, 1 seed"
        figure.legend(
            loc="outside right upper", title=f"bars: 95 % of the\ndifference to the base\nover {over}\n(base: its own)",
            title_fontsize=8,
        )  # fmt: skip


def _name_points(axes: Any, points: dict[str, tuple[float, float]]) -> None:
    """Write each point's name beside it, on a side that is free of points and of the names before."""
    figure = axes.figure
    figure.draw_without_rendering()  # a text's extent is known only once the axes have their place
    taken = [axes.transData.transform(point) for point in points.values()]
    boxes: list[Any] = []
    for key, point in points.items():
        for dx, dy, side in ((7, 6, "left"), (-7, 6, "right"), (7, -13, "left"), (-7, -13, "right"), (7, 18, "left")):
            text = axes.annotate(
                key.replace("alpha=", "α="), point, xytext=(dx, dy), textcoords="offset points", fontsize=8, color=INK,
                ha=side, zorder=4,
            )  # fmt: skip
            box = text.get_window_extent()
            if not (any(box.overlaps(other) for other in boxes) or any(box.contains(*spot) for spot in taken)):
                break
            text.remove()
        else:
            continue  # no room: the legend names it
        boxes.append(box)


def draw_curves(scene: Scene, path: Path) -> None:
    """pass@k over k, and beside it the difference to the base model, on a scale of its own."""
    with _figure(path, 12.0, 5.2) as figure:
        left, right = figure.subplots(1, 2)
        left.set_title("pass@k")
        right.set_title("pass@k − base")
        lines: list[tuple[str, dict[str, Estimate], Look]] = [("base", scene.base, Look(INK, "*", ":"))]
        lines += [(key, scene.found[key], scene.looks[key]) for key in scene.found]
        for key, found, look in lines:
            means = np.array([found[f"pass@{k}"].mean for k in scene.ks])
            before = np.array([scene.base[f"pass@{k}"].mean for k in scene.ks])
            style = {"color": look.colour, "marker": look.marker, "markersize": 5, "linewidth": 1.8}
            left.plot(scene.ks, means, look.dash, label=key, **style)
            right.plot(scene.ks, means - before, look.dash, **style)
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.set_xticks(scene.ks, [str(k) for k in scene.ks])
            axes.minorticks_off()
            axes.set_xlabel("k (samples per prompt)")
        left.set_ylim(0, 1.02)
        figure.legend(loc="outside right upper")


def draw_training(scene: Scene, path: Path) -> None:
    """The curves of PANELS over the step, averaged over seeds and smoothed."""
    with _figure(path, 12.0, 6.4) as figure:
        grid = figure.subplots(2, 2, sharex=True)
        for axes, (name, title) in zip(grid.flat, PANELS, strict=True):
            axes.set_title(title)
            for outcome in scene.results.points:
                mean = _mean_curve(outcome, name)
                if mean is not None:
                    look = scene.looks[outcome.key]
                    steps = np.arange(1, len(mean) + 1)
                    label = outcome.key if name == "pass_rate" else None
                    axes.plot(steps, running_mean(mean), look.dash, color=look.colour, linewidth=1.7, label=label,
                              marker=look.marker, markevery=max(1, len(mean) // 6), markersize=4.5)  # fmt: skip
            if name == "mean_r":
                axes.axhline(1.0, color=GREY, linewidth=0.9, linestyle=":")
        for axes in grid[1]:
            axes.set_xlabel("optimiser step")
        figure.legend(loc="outside right upper")


def _mean_curve(outcome: Outcome, name: str) -> np.ndarray[Any, Any] | None:
    """The mean over seeds of a curve, gaps filled with the last known value; None where nothing was recorded."""
    rows = [curve[name] for curve in outcome.curves if curve.get(name)]
    if not rows:
        return None
    length = min(len(row) for row in rows)
    table = np.array([row[:length] for row in rows], dtype=float)
    known = np.isfinite(table)
    if not known.any():
        return None
    mean = np.where(known, table, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    there = known.any(0)
    return np.asarray(np.interp(np.arange(length), np.flatnonzero(there), mean[there]))


def draw_difficulty(scene: Scene, path: Path) -> None:
    """The share of held-out prompts at each level of difficulty, the base model on top."""
    rows = [("base", scene.base), *scene.found.items()]
    with _figure(path, 9.0, 1.3 + 0.36 * len(rows)) as figure:
        axes = figure.add_subplot()
        axes.set_title("Held-out prompts by difficulty")
        places = np.arange(len(rows))
        start = np.zeros(len(rows))
        for name, colour in zip(LEVELS, LEVEL_COLOURS, strict=True):
            share = np.array([found[f"share_{name}"].mean for _, found in rows])
            axes.barh(places, share, left=start, color=colour, height=0.74, label=name, edgecolor="white")
            for place, value, left in zip(places, share, start, strict=True):
                if value >= 0.05:
                    dark = colour in (LEVEL_COLOURS[0], LEVEL_COLOURS[3])
                    axes.text(left + value / 2, place, f"{value:.2f}", ha="center", va="center", fontsize=8,
                              color="white" if dark else INK)  # fmt: skip
            start += share
        axes.set_yticks(places, [key for key, _ in rows])
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.grid(visible=False)
        axes.set_xlabel("share of prompts; pass rate easy ≥ .9, medium ≥ .3, hard > 0")
        figure.legend(loc="outside right upper")


def draw_staleness(scene: Scene, path: Path) -> None:
    """pass@1, pass@k_max and distinct answers over the forced staleness: solid corrected, dashed not."""
    lags = sorted({outcome.point["staleness"] for outcome in scene.results.points if outcome.point})
    measures = [("pass@1", "pass@1"), (f"pass@{scene.k}", f"pass@{scene.k}"),
                ("distinct_correct", "distinct right answers")]  # fmt: skip
    with _figure(path, 13.0, 4.8) as figure:
        panels = figure.subplots(1, 3)
        for axes, (name, title) in zip(panels, measures, strict=True):
            axes.set_title(title)
            axes.axhline(scene.base[name].mean, color=INK, linewidth=1, linestyle=":",
                         label="base" if name == "pass@1" else None)  # fmt: skip
            lines = _lines(scene.results.points)
            for number, ((label, correction), line) in enumerate(lines.items()):
                look = scene.looks[line[-1].key]
                shift = 0.03 * (number - (len(lines) - 1) / 2)  # so that error bars do not hide each other
                places = [lags.index(_lag(outcome)) + shift for outcome in line]
                values = [scene.found[outcome.key][name] for outcome in line]
                axes.errorbar(
                    places, [value.mean for value in values],
                    yerr=np.array([_error(value)[:, 0] for value in values]).T,
                    fmt=look.dash, marker=look.marker, color=look.colour, capsize=2.5, linewidth=1.8, markersize=6,
                    markerfacecolor="white" if correction == "none" else look.colour,
                    label=f"{label}, {correction}" if name == "pass@1" else None,
                    zorder=2 if correction == "none" else 3,
                )  # fmt: skip
            axes.set_xticks(range(len(lags)), [str(lag) for lag in lags])
            axes.set_ylim(bottom=0)
            axes.set_xlabel("forced staleness (versions)")
        figure.legend(loc="outside right upper", title="objective, correction", title_fontsize=8)


def _lag(outcome: Outcome) -> int:
    assert outcome.point is not None
    return int(outcome.point["staleness"])


def _lines(points: Sequence[Outcome]) -> dict[tuple[str, str], list[Outcome]]:
    """(label, correction) → its points by staleness. The point at 0 belongs to every correction: there ρ = 1."""
    found: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in points:
        assert outcome.point is not None
        found.setdefault((outcome.point["label"], outcome.point["correction"] or "its own"), []).append(outcome)
    for (label, _), line in found.items():
        if not any(_lag(outcome) == 0 for outcome in line):
            line += [o for o in points if o.point and o.point["label"] == label and _lag(o) == 0][:1]
        line.sort(key=_lag)
    return found


def _error(estimate: Estimate) -> np.ndarray[Any, Any]:
    """The distances of the interval's ends from the mean, below and above: float64, (2, 1)."""
    below, above = estimate.mean - estimate.low, estimate.high - estimate.mean
    return np.array([[max(0.0, below)], [max(0.0, above)]])


def pictures(results: Results) -> dict[str, Callable[[Scene, Path], None]]:
    """The pictures of a report, in order: file name without ending → the function that draws it."""
    if results.is_study:
        return {"staleness": draw_staleness}
    return {
        "frontier": draw_frontier, "pass_at_k": draw_curves, "difficulty": draw_difficulty, "training": draw_training,
    }  # fmt: skip
