"""The files of a sweep's report: results.json, summary.json, prompts.csv, PNG files, an HTML page, a Markdown page.

All of them are made from a Results alone, so that `sieve report` on a committed results.json reproduces the committed
documents. The HTML page contains its pictures and loads nothing.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from broker.printable import printable
from deploy.reports import eval_stats
from deploy.sweeps.plots import Scene, pictures
from deploy.sweeps.results import Outcome, Results
from learner.difficulty import LEVELS
from learner.evaluation.stats import Estimate

CAPTIONS = {
    "staleness": "The same job at forced staleness: every training group is sampled with weights that many versions "
    "old, in lock-step. Solid and filled: corrected; dashed and open: every sample is treated as fresh. At 0 both are "
    "the same estimator.",
    "frontier": "Each point is one objective, all its seeds together: right is more often right, up is more problems "
    "solved by at least one of many samples. The grey line joins α-DPG by α.",
    "pass_at_k": "Unbiased pass@k; right, the difference to the base model, on its own scale.",
    "difficulty": "What became of the problems: a run that loses coverage has more unsolved ones than the base.",
    "training": "Mean over seeds, smoothed; Ê[r] is an objective's own only for α-DPG.",
}
CSS = """
body{font:16px/1.5 system-ui,sans-serif;color:#222;max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}
img{max-width:100%;height:auto}figcaption{color:#555;font-size:.9rem}figure{margin:1rem 0}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.88rem}
th,td{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #e3e3e3;white-space:nowrap}
th:first-child,td:first-child{text-align:left}code,pre{font-size:.85rem;background:#f5f5f5;padding:.1rem .3rem}
pre{padding:.6rem;overflow-x:auto}
"""
FORMULA = tuple("=+-@\t\r\n＝＋－＠")
"""First characters, the full-width forms included, of what a spreadsheet takes for a formula."""
Table = tuple[list[str], list[list[str]]]


def write(results: Results, directory: Path) -> list[Path]:
    """Write results.json, summary.json, prompts.csv, the pictures and index.html to `directory`; return the paths."""
    scene = Scene.of(results)
    drawn = _draw(scene, directory)
    files = {
        "results.json": json.dumps(results.raw, separators=(",", ":"), ensure_ascii=False) + "\n",
        "summary.json": json.dumps(summary(scene), indent=1, ensure_ascii=False) + "\n",
        "prompts.csv": prompts_csv(results),
        "index.html": page(scene, drawn),
    }
    return [*drawn, *(_put(directory / name, text) for name, text in files.items())]


def write_document(results: Results, document: Path) -> list[Path]:
    """Write a Markdown page, with its pictures and results.json in a folder of its name beside it; return the paths."""
    scene, folder = Scene.of(results), document.with_suffix("")
    drawn = _draw(scene, folder)
    raw = _put(folder / "results.json", json.dumps(results.raw, separators=(",", ":"), ensure_ascii=False) + "\n")
    return [_put(document, markdown(scene, drawn, document, raw)), *drawn, raw]


def _draw(scene: Scene, directory: Path) -> list[Path]:
    paths = []
    for name, draw in pictures(scene.results).items():
        paths.append(directory / f"{name}.png")
        draw(scene, paths[-1])
    return paths


def _put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path


def summary(scene: Scene) -> dict[str, Any]:
    """Per point: `metrics` and `change` against the base model as [mean, low, high], `migration` of prompts between
    levels of difficulty, and `seconds`."""

    def described(outcome: Outcome, found: dict[str, Estimate]) -> dict[str, Any]:
        return {
            "key": outcome.key, "point": outcome.point, "seeds": outcome.seeds, "metrics": eval_stats.plain(found),
            "seconds": outcome.seconds,
        }  # fmt: skip

    points = []
    for outcome in scene.results.points:
        before = scene.results.base_of(outcome)
        points.append(
            described(outcome, scene.found[outcome.key])
            | {
                "change": eval_stats.plain(scene.change[outcome.key]),
                "migration": eval_stats.migrations(before, outcome.evaluations),
            }
        )
    return {"name": scene.results.title, "base": described(scene.results.base, scene.base), "points": points}


def prompts_csv(results: Results) -> str:
    """One line per run and prompt: the raw counts from which everything else is computed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["point", "objective", "staleness", "correction", "seed", "prompt", "n", "correct", "distinct"])
    for outcome in [results.base, *results.points]:
        point = outcome.point or {"label": "", "staleness": None, "correction": None}
        where = [outcome.key, point["label"], point["staleness"], point["correction"]]
        for seed, given in zip(outcome.seeds, outcome.evaluations, strict=True):
            for c in given:
                row = [*where, seed, c.prompt, c.n, sum(c.answers), len(c.answers)]
                writer.writerow([_csv_cell(value) for value in row])
    return text.getvalue()


def _csv_cell(value: object) -> object:
    """The value; text that a spreadsheet would take for a formula begins with an apostrophe, which it takes for text's
    mark."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if value.lstrip(" ")[:1] in FORMULA else text


def main_table(scene: Scene) -> Table:
    """Per point: pass@k at a few k, differences to the base at the smallest and largest, distinct answers, diversity,
    share of unsolved prompts, seconds per run."""
    ks = [k for k in (1, 16, 64) if k in scene.ks and k != scene.k] + [scene.k]
    head = ["", *(f"pass@{k}" for k in ks), "Δ pass@1", f"Δ pass@{scene.k}", "distinct", "Gini–Simpson", "unsolved",
            "s/run"]  # fmt: skip
    rows = []
    for outcome in [scene.results.base, *scene.results.points]:
        found = scene.found.get(outcome.key, scene.base)
        row = [outcome.key, *(_around(found[f"pass@{k}"]) for k in ks)]
        if outcome.point is None:
            row += ["", ""]
        else:
            row += [_around(scene.change[outcome.key][f"pass@{k}"], "+") for k in (1, scene.k)]
        row += [f"{found['distinct_correct'].mean:.2f}", f"{found['gini_simpson'].mean:.3f}"]
        row += [f"{found['share_unsolved'].mean:.2f}", f"{sum(outcome.seconds) / len(outcome.seconds):.0f}"]
        rows.append(row)
    return head, rows


def migration_table(scene: Scene) -> Table:
    """Per point: how many prompts became easier, stayed, became harder, unsolved or solved, against the base model.

    The first row is the base against itself with another seed, which shows what chance alone moves.
    """
    head = ["", "easier", "same", "harder", "hard → unsolved", "unsolved → solved"]
    rows = []
    base = scene.results.base.evaluations
    compared = [("base, another seed", base, [*base[1:], base[0]])] if len(base) > 1 else []
    compared += [(o.key, scene.results.base_of(o), o.evaluations) for o in scene.results.points]
    for key, before, after in compared:
        moved = eval_stats.migrations(before, after)
        pairs = [(LEVELS.index(a), LEVELS.index(b), count) for a, row in moved.items() for b, count in row.items()]
        counts = [
            sum(count for a, b, count in pairs if b < a), sum(count for a, b, count in pairs if a == b),
            sum(count for a, b, count in pairs if b > a), moved["hard"]["unsolved"],
            sum(moved["unsolved"][end] for end in LEVELS if end != "unsolved"),
        ]  # fmt: skip
        rows.append([key, *(f"{count:.1f}" for count in counts)])
    return head, rows


def facts(scene: Scene) -> list[str]:
    """Sentences about prompts, samples, steps, seeds, wall time and machine."""
    raw, first = scene.results.raw, scene.results.base.evaluations[0]
    everything = [scene.results.base, *scene.results.points]
    seconds = sum(sum(outcome.seconds) for outcome in everything)
    schedule, sampling = raw["settings"]["schedule"], raw["settings"]["sampling"]
    machine = raw["machine"]
    found = [
        f"{len(first)} held-out prompts, {first[0].n} samples each; {schedule['steps']} steps of "
        f"{schedule['groups_per_step']} prompts × {sampling['group_size']} samples.",
        f"Seeds {', '.join(map(str, scene.results.base.seeds))}; {sum(len(o.seeds) for o in everything)} runs, "
        f"{seconds / 60:.0f} minutes in all on {machine['cores']} cores ({machine['processor']}).",
        "Intervals are 95 % bootstrap over problems and seeds; differences to the base are paired by problem and seed.",
    ]
    if raw["unfinished"]:
        found.append(f"Left out, since not finished: {', '.join(raw['unfinished'])}.")
    return found


def _around(estimate: Estimate, sign: str = "") -> str:
    return f"{estimate.mean:{sign}.3f} ± {(estimate.high - estimate.low) / 2:.3f}"


def page(scene: Scene, drawn: Sequence[Path]) -> str:
    """The HTML page, which contains its pictures."""
    parts = [f"<h1>{html.escape(scene.results.title)}</h1>", *(f"<p>{html.escape(fact)}</p>" for fact in facts(scene))]
    parts.append(_html_table(main_table(scene)))
    for path in drawn:
        data = base64.b64encode(path.read_bytes()).decode()
        caption = html.escape(CAPTIONS[path.stem])
        parts.append(
            f'<figure><img alt="{path.stem}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    parts.append("<h2>Difficulty migration</h2><p>Prompts, mean over seeds, from the base's level to the run's.</p>")
    parts.append(_html_table(migration_table(scene)))
    commands = html.escape("\n".join(scene.results.raw["commands"]))
    parts.append(f"<h2>Made with</h2><pre>{commands}</pre>")
    settings = html.escape(json.dumps(scene.results.raw["settings"], indent=1, ensure_ascii=False))
    parts.append(f"<details><summary>Settings</summary><pre>{settings}</pre></details>")
    title = html.escape(scene.results.title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{CSS}</style></head><body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _html_table(table: Table) -> str:
    head, rows = table
    first = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{first}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def markdown(scene: Scene, drawn: Sequence[Path], document: Path, raw: Path) -> str:
    """The Markdown page. Its interpretation is written by people: `<document>.notes.md`, where there is one, follows
    the table."""
    title = "Staleness, with and without correction" if scene.results.is_study else "Coverage against precision"
    parts = [
        f"# {title}",
        "\n".join(_plain_markdown(fact) for fact in facts(scene)),
        _markdown_table(main_table(scene)),
    ]
    notes = document.with_suffix(".notes.md")
    if notes.is_file():
        parts.append(notes.read_text(encoding="utf-8").strip())
    for path in drawn:
        caption = CAPTIONS[path.stem]
        parts.append(f"![{path.stem}]({path.relative_to(document.parent)})\n\n{caption}")
    parts += ["## Difficulty migration", "Prompts, mean over seeds, from the base's level to the run's."]
    parts.append(_markdown_table(migration_table(scene)))
    commands = "\n".join(f"    {printable(command)}" for command in scene.results.raw["commands"])
    relative = raw.relative_to(document.parent)
    parts += [
        "## Made with",
        commands,
        f"The raw counts per run and prompt are in [{relative}]({relative}). This page, from them:",
        f"    sieve report {document.parent.name}/{relative} --document {document.parent.name}/{document.name}",
    ]
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    head, rows = table
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *([_plain_markdown(cell) for cell in row] for row in rows)]
    first, second, *others = ("| " + " | ".join(cells) + " |" for cells in lines)
    return "\n".join([first, second.replace(" ", ""), *others])


def _plain_markdown(text: str) -> str:
    """Text that stays text in Markdown: no HTML, no cell's end, no line's end."""
    return html.escape(printable(text), quote=False).replace("|", "\\|")
