"""Benchmark of the verifying service: verdicts per second by replicas, and the latency from an offer to its verdict.

    python -m benchmarks.verifier [--replicas 1 2] [--verdicts 600] [--rounds 3] [--json FILE]

Real services, each in its own process, run on a private Redis; completions are offered before they start, so that only
the services are measured. There are three loads: `waits` (10 ms without computing, like a prover: the scaling of the
service, whatever the number of cores), `math` (a symbolic comparison each, in a helper process: needs as many cores as
replicas), and `arithmetic` (20 µs: the cost of the queue itself). Rates are taken between the first and the last tenth.
Latencies are those of single completions offered to an idle service. The verdict cache is off, except where it is
measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from broker.queue.actor_client import ActorClient
from broker.queue.admin_client import AdminClient
from broker.queue.heartbeat import Heartbeat
from broker.queue.learner_client import LearnerClient
from broker.queue.state import RunSpec
from broker.queue.wire import Completion, Prompt, Ticket, float32, int32
from broker.runtime.redis_server import Server
from broker.settings import BrokerSettings, DataSettings, ModelSettings, RunSettings
from verifier.service import VerifierConfig
from verifier.settings import VerifierSettings

ROOT = Path(__file__).resolve().parents[1]
SERVE = (
    "import sys; from verifier.service import VerifierConfig, VerifierService\n"
    "sys.exit(VerifierService(VerifierConfig.model_validate_json(sys.argv[1]), index=int(sys.argv[3]), "
    "url=sys.argv[2]).run())"
)
COUNTDOWN = {"numbers": [2, 3, 7], "target": 20}


@dataclass(frozen=True)
class Load:
    """A load: a queue, its settings, a record, and a template for answer k."""

    name: str
    queue: str
    settings: dict[str, Any]
    record: dict[str, Any]
    answer: str
    share: float = 1.0
    """Multiple of --verdicts that is judged: fast verifiers need more."""


LOADS = (
    Load(
        "waits",
        "arithmetic_late",
        {"factory": "benchmarks.verifier:Late", "options": {"seconds": 0.01}},
        COUNTDOWN,
        "2*(3+7)+0*{k}",
    ),
    Load("math", "math", {}, {"answer": "x^2+2x+1"}, r"\boxed{{(x+1)^2+{k}-{k}}}"),
    Load("arithmetic", "arithmetic", {}, COUNTDOWN, "2*(3+7)+0*{k}", 10.0),
)


class Late:
    """`SlowArithmetic` under another name."""

    name = "arithmetic_late"

    def __new__(cls, seconds: float) -> Any:
        from benchmarks.slow_verifier import SlowArithmetic

        verifier = SlowArithmetic(seconds)
        verifier.name = cls.name
        return verifier


class Run:
    """A run, its clients, and the services for it."""

    def __init__(self, server: Server, directory: Path, name: str, load: Load, **settings: Any) -> None:
        self.url, self.load = server.url, load
        self.config = VerifierConfig(
            run=RunSettings(name=name, directory=directory),
            broker=BrokerSettings(),
            model=ModelSettings(path=Path("none")),
            data=DataSettings(train=Path("none")),
            verifier=VerifierSettings.model_validate(
                {"serve": {load.queue: {"cache": False, **load.settings, **settings}}}
            ),
        )
        broker, run = self.config.broker, self.config.run
        self.learner = LearnerClient.connect(broker, run, url=self.url)
        self.actor = ActorClient.connect(broker, run, url=self.url)
        self.admin = AdminClient.connect(broker, run, url=self.url)

    def open(self, groups: int) -> None:
        """Open the run, with room for `groups` groups of one completion."""
        epoch = self.learner.begin("learner")
        self.learner.open_run(
            epoch,
            RunSpec(
                fingerprint="f" * 64,
                seed=0,
                steps=1,
                group_size=1,
                groups_per_step=groups,
                publish_every=1,
                max_staleness=0,
                max_queued_bytes=1 << 30,
                max_new_tokens=8,
                train_prompts=1,
                eval_prompts=0,
                eos_token_ids=(0,),
                weights=str(ROOT),
            ),
            [Prompt(index=0, text="?", tokens=int32([1]), verifier=self.load.queue, record=self.load.record)],
            [],
        )
        self.learner.publish(epoch, 0, 0)

    def offer(self, count: int, first: int = 0) -> None:
        """Offer `count` completions with different answers."""
        self.actor.heartbeat(Heartbeat(id="actor", role="actor", phase="sampling"))
        tickets = self.actor.take("actor", count).tickets
        assert len(tickets) == count
        self.actor.offer("actor", [self._complete(ticket, first + k) for k, ticket in enumerate(tickets)])

    def _complete(self, ticket: Ticket, k: int) -> Completion:
        return Completion(
            group_id=ticket.group_id,
            lane="train",
            prompt=0,
            idx=0,
            n=1,
            tokens=int32([1] * 64),
            logprobs=float32([-1.0] * 64),
            spans=((0, 0, 64),),
            finish="stop",
            text=self.load.answer.format(k=k),
        )

    def judged(self) -> int:
        depths = self.admin.depths()
        return depths.passed + depths.failed

    @contextmanager
    def services(self, replicas: int) -> Iterator[None]:
        """Run `replicas` service processes, as the launcher starts them, during the block."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", SERVE, self.config.model_dump_json(), self.url, str(index)],
                env=environment,
                stderr=subprocess.DEVNULL,
            )
            for index in range(replicas)
        ]
        try:
            yield
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(60)
            for client in (self.learner, self.actor, self.admin):
                client.close()

    def ready(self) -> int:
        return sum(
            heartbeat.role == "verifier" and heartbeat.values.get("verdicts", 0) > 0
            for heartbeat in self.admin.services()
        )


def rate(run: Run, replicas: int, verdicts: int) -> float:
    """Verdicts per second between the first and the last tenth, once every replica has given one."""
    run.open(2 * verdicts)
    run.offer(verdicts)
    with run.services(replicas):
        _until(lambda: (run.judged() > 0 and run.ready() == replicas) or run.judged() >= verdicts, 0.02)
        run.offer(verdicts, verdicts)  # the warm-up may have used up some of the first ones
        begun, begin = run.judged(), time.monotonic()
        wanted = begun + int(0.8 * (2 * verdicts - begun))
        _until(lambda: run.judged() >= wanted, 0.01)
        return (run.judged() - begun) / (time.monotonic() - begin)


def latencies(run: Run, count: int) -> list[float]:
    """Seconds from the offer of a single completion to an idle service to the verdict in its group, sorted."""
    run.open(count + 3)
    seen = []
    with run.services(1):
        for k in range(count + 3):
            begin = time.monotonic()
            run.offer(1, k)
            _until(lambda k=k: run.judged() > k, 0.0005)  # type: ignore[misc]
            if k >= 3:  # the first ones start helper processes
                seen.append(time.monotonic() - begin)
    return sorted(seen)


def _until(condition: Any, pause: float) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("no progress for 300 s: is the machine overloaded?")
        time.sleep(pause)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--verdicts", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load", choices=[load.name for load in LOADS], nargs="+")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    loads = [load for load in LOADS if not options.load or load.name in options.load]
    found: dict[str, Any] = {"load average": os.getloadavg()[0], "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        directory, number = Path(folder), 0
        with Server.start(BrokerSettings(), RunSettings(directory=directory)) as server:
            for load in loads:
                rates: dict[int, list[float]] = {replicas: [] for replicas in options.replicas}
                for _ in range(options.rounds):
                    for replicas in options.replicas:
                        number += 1
                        run = Run(server, directory, f"r{number}", load)
                        rates[replicas].append(rate(run, replicas, int(options.verdicts * load.share)))
                run = Run(server, directory, f"l{number}", load)
                waited = latencies(run, 40)
                found[load.name] = {"rates": rates, "median": statistics.median(waited), "p95": waited[37]}
    table = Table("load", "replicas", "verdicts/s", "× of one", "offer to verdict, median (95 %)")
    for load in loads:
        one = found[load.name]["rates"][options.replicas[0]]
        for replicas, values in found[load.name]["rates"].items():
            ratio = statistics.median(mine / first for mine, first in zip(values, one, strict=True))
            first = replicas == options.replicas[0]
            wait = f"{found[load.name]['median'] * 1e3:.1f} ms ({found[load.name]['p95'] * 1e3:.1f})" if first else ""
            table.add_row(load.name, str(replicas), f"{statistics.median(values):,.0f}", f"{ratio:.2f}", wait)
    Console().print(table)
    Console().print(f"{os.cpu_count()} cores, load {found['load average']:.1f} at the start")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
