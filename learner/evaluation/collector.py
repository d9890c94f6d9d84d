"""Collection of evaluations: finished groups of a version become raw samples and one line of eval.jsonl.

Groups are read a few at a time between optimiser steps, so that an evaluation never holds training up. The broker keeps
the groups of a version until its files are written: a learner that dies in between reads them again. The raw files of a
version depend on its groups only, so that it does not matter who writes them.
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
from learner.epoch_files import Journal, own
from learner.evaluation.results import Outputs, write_parquet
from learner.evaluation.stats import PromptResult, summarise

POLL_SECONDS = 0.25
"""Between two questions to the broker: evaluations take much longer than this."""


@dataclass
class _Partial:
    """What has been read of an evaluation that is not complete yet, by prompt."""

    lines: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Lines of eval/v<version>.jsonl."""
    outputs: dict[int, Outputs] = field(default_factory=dict)
    """Rows of eval/v<version>.parquet."""
    errors: int = 0
    """Completions without a verdict, by which groups are short."""


class EvaluationCollector:
    """Requests evaluations and writes them: eval.jsonl, eval/v<version>.jsonl and eval/v<version>.parquet of a run."""

    def __init__(
        self, broker: LearnerClient, epoch: Epoch, run_path: Path, finished: Callable[[dict[str, float]], None]
    ) -> None:
        """`finished` is called with the numbers of each evaluation's line in eval.jsonl once its files are written."""
        self._broker, self._epoch, self._path, self._finished = broker, epoch, run_path, finished
        # After a rollback, evaluations of weights that are no longer part of the run's history are left out.
        self._journal = Journal(
            run_path / "eval.jsonl", epoch.number, "version", lambda line: int(line["step"]) <= epoch.published_step
        )
        self.pending: dict[int, int] = broker.eval_open()
        """Version → groups still missing when the broker was last asked; the version's weights must stay on disk."""
        self._partial: dict[int, _Partial] = {}
        self._polled = 0.0

    def request(self, version: int, prompts: int, samples: int) -> None:
        """Request `samples` completions of each of the first `prompts` prompts of data.eval; safe to repeat."""
        if prompts and version not in self._journal.keys:
            self._broker.request_eval(self._epoch, version, prompts, samples)
            self.pending.setdefault(version, prompts)

    def poll(self, groups: int, *, now: bool = False) -> bool:
        """Read up to `groups` finished groups of each evaluation and write what is complete; True if there was any.

        Does nothing within POLL_SECONDS of a poll that found nothing, unless `now`.
        """
        if not now and time.monotonic() - self._polled < POLL_SECONDS:
            return False
        self.pending = self._broker.eval_open()
        busy = False
        for version, missing in self.pending.items():
            partial = self._partial.setdefault(version, _Partial())
            unread = [
                group_id for group_id in self._broker.eval_ready(version) if _prompt(group_id) not in partial.lines
            ]
            for group in self._broker.groups(unread[:groups]):
                _read(partial, group)
                busy = True
            if missing == 0 and len(unread) <= groups:
                self._write(version, partial)
                self._broker.eval_done(self._epoch, version)
                del self._partial[version]
                busy = True
        self.pending = {version: missing for version, missing in self.pending.items() if version in self._partial}
        if not busy:
            self._polled = time.monotonic()
        return busy

    def close(self) -> None:
        self._journal.close()

    def _write(self, version: int, partial: _Partial) -> None:
        directory = self._path / "eval"
        directory.mkdir(parents=True, exist_ok=True)
        lines = [partial.lines[prompt] for prompt in sorted(partial.lines)]
        raw = directory / f"v{version:08d}.jsonl"
        mine = own(raw, self._epoch.number)
        with open(mine, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(mine, raw)
        table = raw.with_suffix(".parquet")
        mine = own(table, self._epoch.number)
        write_parquet(mine, [partial.outputs[prompt] for prompt in sorted(partial.outputs)])
        os.replace(mine, table)
        if version in self._journal.keys:
            return  # an earlier learner died between writing this line and eval_done
        line = self._line(version, partial, lines)
        self._journal.append(line)
        self._journal.sync()
        self._finished({name: float(value) for name, value in line.items()})

    def _line(self, version: int, partial: _Partial, lines: list[dict[str, Any]]) -> dict[str, Any]:
        """The version's line of eval.jsonl."""
        results = [
            PromptResult(
                line["prompt"], line["n"], tuple(answer for outcome, answer in line["samples"] if outcome == "pass")
            )
            for line in lines
            if line["n"]
        ]
        published = self._broker.published(version)
        assert published is not None, "only published versions are evaluated"
        return {
            "version": version,
            "step": published.step,
            "time": time.time(),
            **(summarise(results) if results else {"prompts": 0.0, "samples": 0.0}),
            "answered_errors": partial.errors,
            "prompts_without_verdict": len(lines) - len(results),
        }


def _prompt(group_id: str) -> int:
    """The prompt's row in data.eval."""
    return int(group_id.partition(":")[2])


def _read(partial: _Partial, group: Group) -> None:
    """Add a finished group to `partial`."""
    members = sorted(group.members, key=lambda member: member.completion.idx)
    samples = []
    for member in members:
        passed = member.verdict.outcome == "pass"
        # Of a right answer its canonical form: two are the same answer iff these are equal.
        answer = member.verdict.answer if passed and member.verdict.answer else member.completion.text
        samples.append([member.verdict.outcome, answer])
    right = [answer for outcome, answer in samples if outcome == "pass"]
    prompt = _prompt(group.group_id)
    partial.errors += group.closed_short
    partial.lines[prompt] = {
        "prompt": prompt,
        "n": len(samples),
        "correct": len(right),
        "distinct": len(set(right)),
        "samples": samples,
    }
    partial.outputs[prompt] = Outputs(
        prompt=prompt,
        outcomes=[outcome for outcome, _ in samples],
        answers=[answer for _, answer in samples],
        tokens=[member.completion.ids for member in members],
        log_probs=[float(member.completion.sampler_logprobs.sum(dtype="float64")) for member in members],
    )
