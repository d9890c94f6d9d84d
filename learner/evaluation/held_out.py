"""Held-out evaluation as it comes in: finished groups of a version to raw samples and one line of figures.

Groups are read a few at a time between optimiser steps, so that an evaluation never holds training up. Nothing is freed
in the broker before its figures are on disk: a learner that dies in the middle reads the groups again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.queue.learner_client import LearnerClient
from broker.queue.state import Epoch, Group
from broker.weights.store import VersionStore
from learner.evaluation.results import Outputs, write_parquet
from learner.evaluation.stats import PromptResult, summarise

POLL_SECONDS = 0.25
"""Between two looks at the broker: evaluations take much longer than this."""


@dataclass
class _Open:
    """An evaluation under way: prompt -> raw line, of the groups read so far."""

    lines: dict[int, dict[str, Any]] = field(default_factory=dict)
    outputs: dict[int, Outputs] = field(default_factory=dict)
    errors: int = 0


class Evaluations:
    """Collects evaluations; writes `eval.jsonl` and `eval/v<version>.jsonl` and `.parquet` under the run directory."""

    def __init__(
        self, broker: LearnerClient, weights: VersionStore, run_path: Path, finished: Callable[[dict[str, float]], None]
    ) -> None:
        """`finished` is called with the figures of each evaluation once they are on disk."""
        self.broker, self.weights, self.path, self.finished = broker, weights, run_path, finished
        self.open: dict[int, int] = broker.eval_open()
        """Version -> groups still missing, as of the last look; their weights must stay on disk."""
        self._partial: dict[int, _Open] = {}
        self._looked = 0.0

    def request(self, epoch: Epoch, version: int, prompts: int, samples: int) -> None:
        """Ask for `samples` completions of each of the first `prompts` held-out prompts; safe to repeat."""
        if prompts and version not in self.written():
            self.broker.request_eval(epoch, version, prompts, samples)
            self.open.setdefault(version, prompts)

    def poll(self, epoch: Epoch, groups: int, *, now: bool = False) -> bool:
        """Read up to `groups` finished groups of each evaluation and write what is complete; True if there was any."""
        if not now and time.monotonic() - self._looked < POLL_SECONDS:
            return False
        self.open = self.broker.eval_open()
        busy = False
        for version, missing in self.open.items():
            partial = self._partial.setdefault(version, _Open())
            ready = [
                group_id
                for group_id in self.broker.eval_ready(version)
                if int(group_id.partition(":")[2]) not in partial.lines
            ]
            for group in self.broker.groups(ready[:groups]):
                self._read(partial, group)
                busy = True
            if missing == 0 and len(ready) <= groups:
                self._write(version, partial)
                self.broker.eval_done(epoch, version)
                del self._partial[version]
                busy = True
        self.open = {version: missing for version, missing in self.open.items() if version in self._partial}
        if not busy:
            self._looked = time.monotonic()
        return busy

    def _read(self, partial: _Open, group: Group) -> None:
        samples = []
        members = sorted(group.members, key=lambda member: member.completion.idx)
        for member in members:
            passed = member.verdict.outcome == "pass"
            # Of a right answer its canonical form: two are the same answer iff these are equal.
            answer = member.verdict.answer if passed and member.verdict.answer else member.completion.text
            samples.append([member.verdict.outcome, answer])
        right = [answer for outcome, answer in samples if outcome == "pass"]
        partial.errors += group.closed_short
        index = int(group.group_id.partition(":")[2])
        partial.lines[index] = {
            "prompt": index,
            "n": len(samples),
            "correct": len(right),
            "distinct": len(set(right)),
            "samples": samples,
        }
        partial.outputs[index] = Outputs(
            prompt=index,
            outcomes=[outcome for outcome, _ in samples],
            answers=[answer for _, answer in samples],
            tokens=[member.completion.ids for member in members],
            log_probs=[float(member.completion.sampler_logprobs.sum(dtype="float64")) for member in members],
        )

    def _write(self, version: int, partial: _Open) -> None:
        directory = self.path / "eval"
        directory.mkdir(parents=True, exist_ok=True)
        lines = [partial.lines[index] for index in sorted(partial.lines)]
        raw = directory / f"v{version:08d}.jsonl"
        temporary = raw.with_name(f".{raw.name}.partial")
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, raw)
        write_parquet(raw.with_suffix(".parquet"), [partial.outputs[index] for index in sorted(partial.outputs)])
        results = [
            PromptResult(
                line["prompt"], line["n"], tuple(answer for outcome, answer in line["samples"] if outcome == "pass")
            )
            for line in lines
            if line["n"]
        ]
        figures: dict[str, Any] = {
            "version": version,
            "step": self.weights.manifest(version).meta["step"],
            "time": time.time(),
        }
        figures |= summarise(results) if results else {"prompts": 0.0, "samples": 0.0}
        figures |= {"answered_errors": partial.errors, "prompts_without_verdict": len(lines) - len(results)}
        if version not in self.written():  # a learner may have died between this line and eval_done
            with open(self.path / "eval.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(figures) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self.finished({name: float(value) for name, value in figures.items()})

    def written(self) -> set[int]:
        """Versions in eval.jsonl. A line cut off by a crash is dropped from the file."""
        path = self.path / "eval.jsonl"
        if not path.exists():
            return set()
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        return {int(json.loads(line)["version"]) for line in whole.splitlines()}
