"""The run as one screen: progress, the figures that matter, the pipeline from left to right, and the services.

    tickets → verify → ready → leased

`render` draws one Snapshot for the live view, `sieve status` and its --watch alike; `line` says the same in one line
for logs and pipes. Holds no state besides the screen and reads nothing by itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.observe.snapshot import Snapshot, Tail

PLAIN_SECONDS = 5.0
"""Between two lines when the output is no terminal."""
SHOWN_SERVICES = 16
GONE_LEASES = 3
"""A service not heard of for this many leases is no longer shown."""
STYLE = {"actor": "cyan", "verifier": "magenta", "learner": "green", "broker": "blue", "launcher": "blue"}


class View:
    """The live screen of `sieve run` (or its plain lines); a context manager."""

    def __init__(self, console: Console, name: str, steps: int, tail: Tail, *, live: bool) -> None:
        self._console, self._name, self._steps, self._tail = console, name, steps, tail
        self._live = (
            Live(console=console, refresh_per_second=4, transient=False) if live and console.is_terminal else None
        )
        self._said = 0.0
        self._events: list[str] = []

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
        """Something a person should see: a restart, a drain. Stays on the live screen among the last three."""
        self._events = [*self._events, f"{time.strftime('%H:%M:%S')} {text}"][-3:]
        if self._live is None:
            self._console.print(text, highlight=False, soft_wrap=True)

    def update(self, snapshot: Snapshot) -> None:
        """Draw what was seen last."""
        record = self._tail.read()
        if self._live is not None:
            self._live.update(render(snapshot, record, self._tail, self._name, self._steps, self._events))
        elif time.monotonic() - self._said >= PLAIN_SECONDS:
            self._said = time.monotonic()
            self._console.print(line(snapshot, record, self._tail, self._steps), highlight=False, soft_wrap=True)


def render(
    snapshot: Snapshot, record: dict[str, Any] | None, tail: Tail, name: str, steps: int, events: Sequence[str] = ()
) -> RenderableType:
    """The whole screen."""
    parts: list[RenderableType] = [
        _progress(record, tail, name, steps),
        _figures(snapshot, record),
        _pipeline(snapshot),
    ]
    parts.append(_services(snapshot))
    parts += [Text(event, style="yellow") for event in events]
    return Group(*parts)


def line(snapshot: Snapshot, record: dict[str, Any] | None, tail: Tail, steps: int) -> str:
    """Progress, figures and queues in one line."""
    if snapshot.depths is None:
        return f"waiting for the broker: {snapshot.error or 'not asked yet'}"
    d = snapshot.depths
    if record is None:
        waits = "; ".join(f"{p.id.rsplit('-', 3)[0]} {p.phase}" + (f" ({p.waiting_on})" if p.waiting_on else "")
                          for p in snapshot.services if p.role in ("actor", "verifier", "learner"))  # fmt: skip
        done = f"step 0/{steps}" + (f"  {waits}" if waits else "")
    else:
        done = (
            f"step {record['step']}/{steps}  {_clock(_eta(record, tail, steps))} left  pass "
            f"{_n(record, 'pass_rate', 3)}  "
            f"stale {_n(record, 'staleness_mean', 2)}  ess {_n(record, 'ess_rho_alpha', 2)}  r "
            f"{_n(record, 'mean_r', 2)}"
        )
    return (
        f"{done}  | tickets {d.tickets + d.eval_waiting + d.returned} → verify {sum(d.verify.values())} → ready "
        f"{d.ready} → "
        f"leased {d.leased} | v{d.version}  {snapshot.tokens_per_second:,.0f} tok/s"
        + (f"  {d.dead_letters} dead letters" if d.dead_letters else "")
    )


def _eta(record: dict[str, Any], tail: Tail, steps: int) -> float | None:
    pace = tail.seconds_per_step()
    return None if pace is None else max(0.0, pace * (steps - record["step"]))


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "–:––"
    whole = int(seconds + 0.5)
    return (
        f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02d}"
    )


def _n(record: dict[str, Any] | None, name: str, digits: int) -> str:
    value = None if record is None else record.get(name)
    return "–" if value is None else f"{value:.{digits}f}"


def _progress(record: dict[str, Any] | None, tail: Tail, name: str, steps: int) -> RenderableType:
    step = 0 if record is None else int(record["step"])
    grid = Table.grid(padding=(0, 2))
    left = _clock(_eta(record, tail, steps)) if record else "–:––"
    pace = tail.seconds_per_step()
    grid.add_row(
        Text(f"sieve  {name}", style="bold"),
        ProgressBar(total=max(1, steps), completed=step, width=40, complete_style="green", finished_style="green"),
        f"step {step}/{steps}",
        f"{left} left" + (f", {pace:.2f} s a step" if pace else ""),
    )
    return grid


def _figures(snapshot: Snapshot, record: dict[str, Any] | None) -> RenderableType:
    grid = Table.grid(padding=(0, 3))
    worst = _n(record, "staleness_max", 0)
    cells = [
        ("pass rate", _n(record, "pass_rate", 3)),
        ("mean r", _n(record, "mean_r", 3)),
        ("staleness", f"{_n(record, 'staleness_mean', 2)} (max {worst})"),
        ("ESS ρ^α", _n(record, "ess_rho_alpha", 3)),
        ("version", "–" if snapshot.depths is None else str(snapshot.depths.version)),
        ("canary", "–" if snapshot.canary_mismatch is None else f"{snapshot.canary_mismatch:.1e}"),
        ("tokens/s", f"{snapshot.tokens_per_second:,.0f}"),
    ]
    for _ in cells:
        grid.add_column()
    grid.add_row(*[Text.assemble((f"{label} ", "dim"), (value, "bold")) for label, value in cells])
    return grid


def _pipeline(snapshot: Snapshot) -> RenderableType:
    d = snapshot.depths
    if d is None:
        return Text(f"broker: {snapshot.error or 'not asked yet'}", style="red" if snapshot.error else "dim")
    waiting = d.returned + d.eval_waiting
    verify = ", ".join(f"{name} {count}" for name, count in sorted(d.verify.items())) or "0"
    text = Text()
    for label, count, style in (
        ("tickets", str(d.tickets), "bold cyan"), ("verify", verify, "bold magenta"),
        ("ready", str(d.ready), "bold green"), ("leased", str(d.leased), "bold green"),
    ):  # fmt: skip
        text.append(("  ─▶  " if text else "") + f"{label} ", "dim").append(count, style)
        if label == "tickets" and waiting:
            text.append(f" (+{waiting} waiting)", "dim")
    text.append(f"     {d.queued_bytes / 1e6:,.1f} MB in Redis", "dim")
    if d.dead_letters or d.dropped:
        text.append(f"   {d.dead_letters} dead letters, {d.dropped} groups dropped", style="red")
    return text


def _services(snapshot: Snapshot) -> RenderableType:
    table = Table(box=None, padding=(0, 2), header_style="dim", pad_edge=False)
    for column in ("service", "phase", "waiting on", "since", "heard"):
        table.add_column(column, no_wrap=True, justify="right" if column in ("since", "heard") else "left")
    gone = GONE_LEASES * snapshot.lease_seconds
    shown = [
        heartbeat for heartbeat in snapshot.services if heartbeat.phase != "stopped" and heartbeat.age_seconds < gone
    ]
    for heartbeat in shown[:SHOWN_SERVICES]:
        table.add_row(
            Text(f"{heartbeat.role} {heartbeat.index}  pid {heartbeat.pid}", style=STYLE.get(heartbeat.role, "")),
            heartbeat.phase,
            heartbeat.waiting_on or "–",
            f"{max(0.0, snapshot.at - heartbeat.since):.0f} s",
            Text(
                f"{heartbeat.age_seconds:.0f} s ago",
                style="red" if heartbeat.age_seconds > snapshot.lease_seconds else "",
            ),
        )
    if len(shown) > SHOWN_SERVICES:
        table.add_row(f"… {len(shown) - SHOWN_SERVICES} more", "", "", "", "")
    return table
