"""The loop's benchmarks: four ratios, each from one run of this command on the machine at hand. Reads and keeps
nothing.

    python -m benchmarks.loop [broker|learner|actor|wall …] [--quick] [--json FILE]

    broker    offer → receive → judge → lease → groups → commit against raw pipelined redis-py     broker_path.py
    learner   the optimiser step against a bare torch loop on the same batch                       learner_step.py
    actor     the torch engine against bare `transformers.generate` on the same prompts            actor_torch.py
    wall      the asynchronous job against the same job in lock-step                               wall.py

Each file says what its two sides do and leave out. Exit code 1 if a ratio misses its aim. One thread each; about four
minutes (`--quick`: one) on an idle machine with two cores. From the repository's root.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Row, row

WHICH = ("broker", "learner", "actor", "wall")


def broker(quick: bool) -> Iterator[Row | str]:
    """The broker's path at 8 KB and 64 KB a completion."""
    from benchmarks.broker_path import measure

    for kilobytes, rounds in ((8, 5 if quick else 15), (64, 3 if quick else 7)):
        line, parts = measure(kilobytes, 64, rounds)
        yield line
        yield "µs a completion: " + ", ".join(f"{name} {value:.0f}" for name, value in parts.items())


def learner(quick: bool) -> Iterator[Row | str]:
    """The optimiser step."""
    from benchmarks.learner_step import measure

    yield from measure(3 if quick else 9)


def actor(quick: bool) -> Iterator[Row | str]:
    """Tokens per second of the torch engine."""
    from benchmarks.actor_torch import rates

    seen = rates(128, 3 if quick else 9)
    yield row("actor, torch engine", seen["torch engine"], seen["bare generate"], "tokens/CPU s", "≥ 0.90")


def wall(quick: bool) -> Iterator[Row | str]:
    """The job's wall time."""
    from benchmarks.wall import measure

    line, details = measure(1 if quick else 3, 10 if quick else 16)
    yield line
    yield ", ".join(f"{name} {value:.2f}" for name, value in details.items())


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", metavar="WHICH", help=f"{', '.join(WHICH)}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    options = parser.parse_args()
    unknown = sorted(set(options.which) - set(WHICH))
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(WHICH)}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table("what", "ours", "bare", "", "ratio", "rounds", "aim")
    for column in table.columns:
        column.no_wrap = True
    rows: list[Row] = []
    notes: dict[str, list[str]] = {}
    start, load = time.time(), os.getloadavg()[0]
    for name in options.which or WHICH:
        for found in globals()[name](options.quick):
            if isinstance(found, Row):
                rows.append(found)
                mark = {None: "", True: ", met", False: ", missed"}[found.met]
                spread = f"{min(found.rounds):.2f}…{max(found.rounds):.2f}"
                table.add_row(
                    found.what, _number(found.ours), _number(found.bare), found.unit, f"{found.ratio:.2f}", spread,
                    found.aim + mark,
                )  # fmt: skip
                console.print(f"{found.what}: {found.ratio:.2f} ({found.aim or 'for information'})", highlight=False)
            else:
                notes.setdefault(name, []).append(found)
                console.print(f"    {found}", highlight=False, soft_wrap=True)
    console.print(table)
    seconds = time.time() - start
    console.print(
        f"{os.cpu_count()} cores, load {load:.1f} → {os.getloadavg()[0]:.1f}, {seconds:.0f} s; ratio: median of rounds",
        highlight=False,
    )
    if options.json is not None:
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
        body = {
            "rows": [asdict(line) | {"met": line.met} for line in rows], "notes": notes, "machine": machine,
            "load": [load, os.getloadavg()[0]], "seconds": seconds, "quick": options.quick,
        }  # fmt: skip
        options.json.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n")
    sys.exit(1 if any(line.met is False for line in rows) else 0)


if __name__ == "__main__":
    main()
