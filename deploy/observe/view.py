"""The state of a run as text: `render` draws a whole screen, `summary_line` one line for logs and pipes.

Both draw one Snapshot and the newest record of metrics.jsonl, for `sieve run`, `sieve status` and its --watch alike.
`View` is the screen of `sieve run`, updated in place on a terminal and printed line by line elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from broker.printable import one_line
from deploy.observe.snapshot import Snapshot
from deploy.observe.stall import Stall
from deploy.observe.tail import Tail
from learner.step_record import StepRecord

PLAIN_SECONDS = 5.0
"""Time between two lines when the output is not a terminal."""
SHOWN_EVENTS = 3
SHOWN_SERVICES = 16
STYLE = {"actor": "cyan", "verifier": "magenta", "learner": "green", "broker": "blue", "launcher": "blue"}
NO_TIME = "–:––"


class View:
    """The screen of `sieve run`; a context manager. `live` redraws it in place where the output is a terminal."""

    def __init__(self, console: Console, name: str, steps: int, tail: Tail, *, live: bool) -> None:
        self._console, self._name, self._steps, self._tail = console, name, steps, tail
        self._live = (
            Live(console=console, refresh_per_second=4, transient=False) if live and console.is_terminal else None
        )
        self._printed = 0.0
        self._events: list[str] = []
        self._printed_stalls: set[tuple[str, str]] = set()

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def event(self, text: str) -> None:
        """Show that something happened, such as a restart or the start of the drain."""
        text = one_line(text)
        self._events = [*self._events, f"{time.strftime('%H:%M:%S')} {text}"][-SHOWN_EVENTS:]
        if self._live is None:
            self._print(text)

    def update(self, snapshot: Snapshot, stalls: Sequence[Stall] = ()) -> None:
        """Show the newest snapshot and what stands still in it."""
        record = self._tail.read()
        if self._live is not None:
            screen = render(snapshot, record, self._tail, self._name, self._steps, stalls, self._events)
            self._live.update(screen)
        elif time.monotonic() - self._printed >= PLAIN_SECONDS:
            self._printed = time.monotonic()
            self._print(summary_line(snapshot, record, self._tail, self._steps))
            for stall in stalls:
                if (stall.kind, stall.queue) not in self._printed_stalls:
                    self._print(f"stalled: {stall}")
            self._printed_stalls = {(stall.kind, stall.queue) for stall in stalls}

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)


def render(
    snapshot: Snapshot,
    record: StepRecord | None,
    tail: Tail,
    name: str,
    steps: int,
    stalls: Sequence[Stall] = (),
    events: Sequence[str] = (),
) -> RenderableType:
    """The whole screen: progress, metrics, queues, services, stalls and the latest events."""
    return Group(
        _progress(snapshot, record, tail, name, steps),
        _metrics(snapshot, record),
        _queues(snapshot),
        _services(snapshot),
        *(Text(f"unsafe: {one_line(setting)}", style="yellow") for setting in snapshot.unsafe),
        *(Text(f"stalled: {stall}", style="red") for stall in stalls),
        *(Text(event, style="yellow") for event in events),
    )


def summary_line(snapshot: Snapshot, record: StepRecord | None, tail: Tail, steps: int) -> str:
    """Progress, metrics and queue depths in one line."""
    depths = snapshot.depths
    if depths is None:
        return f"waiting for the broker: {snapshot.error or 'not asked yet'}"
    step = steps_done(snapshot, record)
    if record is None:
        progress = "  ".join([f"step {step}/{steps}", *([] if step else _starting(snapshot))])
    else:
        progress = "  ".join(
            [
                f"step {step}/{steps}",
                f"{_clock(_seconds_left(record, tail, steps))} left",
                f"pass {_number(record, 'pass_rate', 3)}",
                f"stale {_number(record, 'staleness_mean', 2)}",
                f"ess {_number(record, 'ess_rho_alpha', 2)}",
                f"r {_number(record, 'mean_r', 2)}",
            ]
        )
    tickets = depths.tickets + depths.eval_waiting + depths.returned
    queues = f"tickets {tickets} → verify {sum(depths.verify.values())} → ready {depths.ready} → leased {depths.leased}"
    dead = f"  {depths.dead_letters} dead letters" if depths.dead_letters else ""
    return f"{progress}  | {queues} | v{depths.version}  {snapshot.tokens_per_second:,.0f} tok/s{dead}"


def steps_done(snapshot: Snapshot, record: StepRecord | None) -> int:
    """Optimiser steps done: by metrics.jsonl, or by the broker where that file is not here, or not current."""
    return max(snapshot.step, 0 if record is None else record.step)


def _starting(snapshot: Snapshot) -> list[str]:
    """What the services do before the first step, in at most one text."""
    shown = []
    for heartbeat in snapshot.services:
        if heartbeat.role in ("actor", "verifier", "learner"):
            waits = f" ({heartbeat.waiting_on})" if heartbeat.waiting_on else ""
            shown.append(f"{heartbeat.role}-{heartbeat.index} {heartbeat.phase}{waits}")
    return ["; ".join(shown)] if shown else []


def _seconds_left(record: StepRecord, tail: Tail, steps: int) -> float | None:
    pace = tail.seconds_per_step()
    return None if pace is None else max(0.0, pace * (steps - record.step))


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return NO_TIME
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _number(record: StepRecord | None, name: str, digits: int) -> str:
    value = None if record is None else getattr(record, name)
    return "–" if value is None else f"{value:.{digits}f}"


def _progress(snapshot: Snapshot, record: StepRecord | None, tail: Tail, name: str, steps: int) -> RenderableType:
    step = steps_done(snapshot, record)
    left = NO_TIME if record is None else _clock(_seconds_left(record, tail, steps))
    pace = tail.seconds_per_step()
    grid = Table.grid(padding=(0, 2))
    grid.add_row(
        Text(f"sieve  {name}", style="bold"),
        ProgressBar(total=max(1, steps), completed=step, width=40, complete_style="green", finished_style="green"),
        f"step {step}/{steps}",
        f"{left} left" + (f", {pace:.2f} s a step" if pace else ""),
    )
    return grid


def _metrics(snapshot: Snapshot, record: StepRecord | None) -> RenderableType:
    staleness = f"{_number(record, 'staleness_mean', 2)} (max {_number(record, 'staleness_max', 0)})"
    cells = [
        ("pass rate", _number(record, "pass_rate", 3)),
        ("mean r", _number(record, "mean_r", 3)),
        ("staleness", staleness),
        ("ESS ρ^α", _number(record, "ess_rho_alpha", 3)),
        ("version", "–" if snapshot.depths is None else str(snapshot.depths.version)),
        ("canary", "–" if snapshot.canary_mismatch is None else f"{snapshot.canary_mismatch:.1e}"),
        ("tokens/s", f"{snapshot.tokens_per_second:,.0f}"),
    ]
    grid = Table.grid(padding=(0, 3))
    for _ in cells:
        grid.add_column()
    grid.add_row(*[Text.assemble((f"{label} ", "dim"), (value, "bold")) for label, value in cells])
    return grid


def _queues(snapshot: Snapshot) -> RenderableType:
    """tickets → verify → ready → leased, each with its depth."""
    depths = snapshot.depths
    if depths is None:
        return Text(f"broker: {snapshot.error or 'not asked yet'}", style="red" if snapshot.error else "dim")
    waiting = depths.returned + depths.eval_waiting
    verify = ", ".join(f"{name} {count}" for name, count in sorted(depths.verify.items())) or "0"
    text = Text()
    text.append("tickets ", "dim").append(str(depths.tickets), "bold cyan")
    if waiting:
        text.append(f" (+{waiting} waiting)", "dim")
    text.append("  ─▶  verify ", "dim").append(verify, "bold magenta")
    text.append("  ─▶  ready ", "dim").append(str(depths.ready), "bold green")
    text.append("  ─▶  leased ", "dim").append(str(depths.leased), "bold green")
    text.append(f"     {depths.queued_bytes / 1e6:,.1f} MB in Redis", "dim")
    if depths.dead_letters or depths.dropped:
        text.append(f"   {depths.dead_letters} dead letters, {depths.dropped} groups dropped", style="red")
    return text


def _services(snapshot: Snapshot) -> RenderableType:
    table = Table(box=None, padding=(0, 2), header_style="dim", pad_edge=False)
    for column in ("service", "phase", "for", "waits on", "waiting", "heartbeat"):
        table.add_column(column, no_wrap=True, justify="right" if column in ("for", "waiting", "heartbeat") else "left")
    shown = snapshot.listed
    for heartbeat in shown[:SHOWN_SERVICES]:
        late = heartbeat.age_seconds > snapshot.lease_seconds
        table.add_row(
            Text(f"{heartbeat.role} {heartbeat.index}  pid {heartbeat.pid}", style=STYLE.get(heartbeat.role, "")),
            heartbeat.phase,
            f"{heartbeat.phase_seconds:.0f} s",
            heartbeat.waiting_on or "–",
            f"{heartbeat.waiting_seconds:.0f} s" if heartbeat.waiting_on else "–",
            Text(f"{heartbeat.age_seconds:.0f} s ago", style="red" if late else ""),
        )
    if len(shown) > SHOWN_SERVICES:
        table.add_row(f"… {len(shown) - SHOWN_SERVICES} more", "", "", "", "", "")
    return table
