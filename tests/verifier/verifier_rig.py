"""Fixtures for the tests of the verifying service: a run in a real Redis, and a verifier controlled by its answers.

`Obedient` is loaded through `verifier.serve.<name>.factory`, so that service processes can load it too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.queue.heartbeat import Heartbeat
from broker.queue.state import RunSpec
from broker.queue.wire import Completion, Prompt, float32, int32
from broker.settings import BrokerSettings, DataSettings, MetricsSettings, ModelSettings, RunSettings
from tests.broker.builders import EveryRole
from verifier.protocol import Judgement
from verifier.service import VerifierConfig, VerifierService
from verifier.settings import VerifierSettings

HERE = Path(__file__).parent


class Obedient:
    """A verifier that does what the first word of an answer says: pass, fail, error, crash, exit, die, sleep SECONDS,
    needs FILE, hang."""

    version = "1"
    reasons = frozenset({"told"})

    def __init__(self, name: str = "obedient", broken: bool = False, seconds: float = 0.0, trace: str = "") -> None:
        self.name, self.broken, self.seconds, self.trace = name, broken, seconds, trace

    def judge(self, record: Mapping[str, Any], answer: str) -> Judgement:
        if self.trace:  # one line for each verdict begun, across processes
            with open(self.trace, "a") as file:
                file.write(f"{os.getpid()} {answer}\n")
        if self.broken:
            raise OSError("no such tool")
        word, *rest = answer.split()
        if word == "hang":
            threading.Event().wait()
        if word == "crash":
            raise RuntimeError("told to crash")
        if word == "exit":
            sys.exit(3)
        if word == "die":  # the whole process, with no chance to say anything
            os._exit(3)
        if word == "needs" and not os.path.exists(rest[0]):
            raise FileNotFoundError(rest[0])
        if word == "sleep":
            time.sleep(float(rest[0]))
        time.sleep(self.seconds)
        return Judgement(word if word in ("fail", "error") else "pass", "told", "", answer)  # type: ignore[arg-type]


@dataclass
class Rig:
    """A run in Redis, and the configuration of services for it."""

    url: str
    directory: Path
    name: str
    lease_seconds: float
    attempts: int

    def config(self, serve: Mapping[str, Any], **verifier: Any) -> VerifierConfig:
        return VerifierConfig(
            run=RunSettings(name=self.name, directory=self.directory),
            broker=BrokerSettings(lease_seconds=self.lease_seconds, verify_attempts=self.attempts, connect_seconds=10),
            model=ModelSettings(path=Path("none")),
            data=DataSettings(train=Path("none")),
            metrics=MetricsSettings(),
            verifier=VerifierSettings.model_validate({"serve": serve, **verifier}),
        )

    def broker(self) -> EveryRole:
        config = self.config({"arithmetic": {}})
        return EveryRole.connect(config.broker, config.run, url=self.url)

    def open(self, answers: Sequence[str], n: int = 1, verifier: str = "obedient", record: Any = None) -> EveryRole:
        """Open the run and offer `answers`, n per group, as an actor would; `length:` in front makes one truncated."""
        broker = self.broker()
        groups = len(answers) // n
        assert groups * n == len(answers)
        broker.heartbeat(Heartbeat(id="learner", role="learner", phase="learning"))
        self.epoch = broker.begin("learner")
        broker.open_run(
            self.epoch,
            RunSpec(
                fingerprint="f" * 64,
                seed=0,
                steps=1,
                group_size=n,
                groups_per_step=groups,
                publish_every=1,
                max_staleness=4,
                max_queued_bytes=1 << 30,
                max_new_tokens=8,
                train_prompts=groups,
                eval_prompts=0,
                eos_token_ids=(0,),
                weights=str(self.directory),
            ),
            [
                Prompt(index=i, text="?", tokens=int32([1]), verifier=verifier, record=record or {"numbers": [1]})
                for i in range(groups)
            ],
            [],
        )
        broker.publish(self.epoch, 0, 0)
        broker.heartbeat(Heartbeat(id="actor", role="actor", phase="sampling"))
        left = list(answers)
        while left:
            tickets = broker.take("actor", len(left)).tickets
            assert tickets
            completions = []
            for ticket in tickets:
                for idx in range(n):
                    text = left.pop()
                    cut = text.startswith("length:")
                    completions.append(
                        Completion(
                            group_id=ticket.group_id,
                            lane="train",
                            prompt=ticket.prompt,
                            idx=idx,
                            n=n,
                            tokens=int32([5, 6]),
                            logprobs=float32([-1, -1]),
                            spans=((0, 0, 2),),
                            finish="length" if cut else "stop",
                            text=text.removeprefix("length:"),
                        )
                    )
            assert set(broker.offer("actor", completions)) == {"new"}
        return broker

    def process(self, config: VerifierConfig, index: int = 0) -> subprocess.Popen[bytes]:
        """A verifying service in its own process, as the launcher starts one."""
        code = (
            "import sys; from verifier.service import VerifierConfig, VerifierService\n"
            "config = VerifierConfig.model_validate_json(sys.argv[1])\n"
            "sys.exit(VerifierService(config, index=int(sys.argv[3]), url=sys.argv[2]).run())"
        )
        return subprocess.Popen(
            [sys.executable, "-c", code, config.model_dump_json(), self.url, str(index)],
            env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
            stderr=subprocess.DEVNULL,
        )


def obedient(**settings: Any) -> dict[str, Any]:
    """A value for `verifier.serve` with one queue, `obedient`."""
    return {"obedient": {"factory": "tests.verifier.verifier_rig:Obedient", **settings}}


@contextmanager
def serving(*services: VerifierService) -> Iterator[list[int]]:
    """Run services in threads; the yielded list receives their exit codes as they end."""
    codes: list[int] = []
    threads = [threading.Thread(target=lambda s=service: codes.append(s.run()), daemon=True) for service in services]
    for thread in threads:
        thread.start()
    try:
        yield codes
    finally:
        for service in services:
            service.request_stop("end of the test")
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)


def until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait for `condition`; returns the seconds it took. Fails after `seconds` with a message that names `what`."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return time.monotonic() - begin


def ready(broker: EveryRole) -> int:
    """The number of groups whose completions are all judged or dead-lettered."""
    return broker.depths().ready
