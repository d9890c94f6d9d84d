"""`sieve status`, `audit` and `deadletter`: a look at a run from outside, live or from what it left behind.

Asks the run's broker; where the run's private Redis is not running, `open_broker` starts it on the run's own data for
as long as the question takes. Never changes the run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live

from broker.errors import EX_OK, EX_TEMPORARY, EX_UNAVAILABLE, BrokerUnavailable
from broker.queue.client import Broker
from broker.runtime.redis_server import Server, answers, read_endpoint, resolve_url
from broker.settings import BrokerSettings
from deploy.config.tree import Config
from deploy.observe.snapshot import Snapshot, Tail, look, stuck
from deploy.observe.view import line, render

ASK_SECONDS = 3.0
"""A person waits in front of the terminal: an unreachable Redis is said sooner than a service would give up."""
WATCH_SECONDS = 1.0


def _patient_for(config: Config) -> BrokerSettings:
    return config.broker.model_copy(update={"connect_seconds": min(ASK_SECONDS, config.broker.connect_seconds)})


@contextmanager
def open_broker(config: Config) -> Iterator[Broker]:
    """A connection to the run's Redis, live or started for this question. Raises BrokerUnavailable with the remedy."""
    settings = _patient_for(config)
    server: Server | None = None
    endpoint = read_endpoint(config.run) if settings.url is None else None
    if settings.url is None and (endpoint is None or not answers(endpoint.url)):
        if not (config.run.path / "redis").is_dir():
            raise BrokerUnavailable(f"{config.run.path}: no run has been there; start `sieve run CONFIG`")
        server = Server.start(config.broker, config.run)
    try:
        broker = Broker.connect(settings, config.run, url=server.url if server else resolve_url(settings, config.run))
        try:
            yield broker
        finally:
            broker.close()
    finally:
        if server is not None:
            server.stop()


def status(config: Config, console: Console, *, watch: bool) -> int:
    """Print the run's state once, or follow it until Ctrl-C or its end. 0: it moves or is over; 75: stuck; 69: no
    broker."""
    tail = Tail(config.run.path)
    settings = _patient_for(config)
    try:
        broker = Broker.connect(settings, config.run, url=resolve_url(settings, config.run))
    except BrokerUnavailable as error:
        return _not_running(config, console, tail, str(error))
    try:
        if not watch:
            return _show(config, console, tail, look(broker))
        return _watch(config, console, tail, broker)
    finally:
        broker.close()


def _not_running(config: Config, console: Console, tail: Tail, why: str) -> int:
    record = tail.read()
    if record is None:
        console.print(f"{config.run.name}: not running: {why}", highlight=False, soft_wrap=True)
        return EX_UNAVAILABLE
    over = record["step"] >= config.schedule.steps
    state = "finished" if over else "stopped; go on with `sieve run CONFIG --resume`"
    console.print(
        f"{config.run.name}: step {record['step']}/{config.schedule.steps}, {state}", highlight=False, soft_wrap=True
    )
    return EX_OK if over else EX_UNAVAILABLE


def _show(config: Config, console: Console, tail: Tail, seen: Snapshot) -> int:
    record = tail.read()
    if console.is_terminal:
        console.print(render(seen, record, tail, config.run.name, config.schedule.steps))
    else:
        console.print(line(seen, record, tail, config.schedule.steps), highlight=False, soft_wrap=True)
        for heartbeat in seen.services:
            waits = f", waits on {heartbeat.waiting_on}" if heartbeat.waiting_on else ""
            console.print(
                f"{heartbeat.id}: {heartbeat.phase}{waits} for {max(0.0, seen.at - heartbeat.since):.0f} s, heard "
                f"{heartbeat.age_seconds:.1f} s ago",
                highlight=False,
                soft_wrap=True,
            )
    edges = stuck(seen)
    for edge in edges:
        console.print(f"stuck: {edge}", style="red", highlight=False, soft_wrap=True)
    return EX_TEMPORARY if edges else EX_OK


def _watch(config: Config, console: Console, tail: Tail, broker: Broker) -> int:
    with Live(console=console, refresh_per_second=2, transient=False) as live:
        try:
            while True:
                seen = look(broker)
                edges = [f"stuck: {edge}" for edge in stuck(seen)]
                live.update(render(seen, tail.read(), tail, config.run.name, config.schedule.steps, edges))
                if seen.depths is not None and seen.depths.finished:
                    return EX_OK
                time.sleep(WATCH_SECONDS)
        except KeyboardInterrupt:
            return EX_OK
