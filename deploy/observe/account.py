"""The account of a run: what the broker counts, recounted from evidence that it did not make.

The broker's counters say what it was told. Whether that is true shows elsewhere: how many samples the Z statistics
hold, which lines are in metrics.jsonl, which step the checkpoint is of, which hash a version's files have. A run in
which groups were trained twice, or in which a replaced learner's files came into use, contradicts itself in one of
these.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.errors import RunUnknown, SieveError, WeightsError
from broker.queue.admin_client import AdminClient
from broker.queue.prompt_order import prompt_of
from broker.queue.state import Audit, Published, RunSpec
from broker.weights.factory import open_store
from deploy.config.tree import Config
from deploy.rundir import run_files
from learner.train.partition import Statistics

ATTEMPTS = 3
"""A run that is at work moves on between the broker's answer and the look at its files: it is then asked again."""


@dataclass(frozen=True)
class Account:
    """The broker's counts, and what contradicts them."""

    counted: Audit
    problems: list[str]

    def plain(self) -> dict[str, Any]:
        """As JSON, with `lost` and `problems`."""
        return {**self.counted.model_dump(), "lost": self.counted.lost, "problems": self.problems}


def account(broker: AdminClient, config: Config, *, deep: bool) -> Account:
    """The account of the run in `config.run.path`. `deep`: every byte of its checkpoints and versions is read too.

    Raises RunUnknown."""
    spec = broker.run_spec()
    if spec is None:
        raise RunUnknown(f"no learner has opened run {config.run.name!r} yet, so there is nothing to account for")
    for _ in range(ATTEMPTS):
        counted = broker.audit()
        problems = list(_problems(broker, spec, counted, config, deep))
        after = broker.audit()
        same = ("epoch", "committed_step", "version", "rolled_back")
        if not problems or all(getattr(after, name) == getattr(counted, name) for name in same):
            break
    return Account(counted, problems)


def _problems(broker: AdminClient, spec: RunSpec, counted: Audit, config: Config, deep: bool) -> Iterator[str]:
    run, versions = config.run.path, broker.versions()
    if counted.lost_groups:
        yield f"{counted.lost_groups} groups lost"
    if counted.lost_completions:
        yield f"{counted.lost_completions} completions lost"
    if counted.duplicates:
        yield f"{counted.duplicates} groups committed twice"
    expected = counted.committed_step * spec.groups_per_step
    if counted.committed != expected:
        yield f"{counted.committed} groups committed, but {counted.committed_step} steps take {expected}"
    yield from _of_z(broker, spec, counted)
    yield from _of_records(run, counted)
    yield from _of_checkpoints(broker, run, spec, counted, deep)
    yield from _of_versions(config, spec, counted, versions, deep)
    yield from _of_evaluations(run, versions)


def _of_z(broker: AdminClient, spec: RunSpec, counted: Audit) -> Iterator[str]:
    """Each trained completion is one observation of its prompt's Z, and no other is."""
    visits: Counter[int] = Counter()
    for order in broker.committed_numbers():
        group_id = f"{order // spec.train_prompts}:{order % spec.train_prompts}"
        visits[prompt_of(group_id, spec.seed, spec.train_prompts)] += 1
    if counted.settled != counted.committed:
        yield f"{counted.settled} groups counted as committed, but {counted.committed} marked so"
    counts = {prompt: Statistics.unpack(data).count for prompt, data in broker.z().items()}
    for prompt in sorted({*counts, *visits}):
        most = visits[prompt] * spec.group_size
        if counts.get(prompt, 0) > most:
            yield f"Z of prompt {prompt} holds {counts[prompt]} samples, but its {visits[prompt]} groups have {most}"
            break
    total = sum(counts.values())
    if total != counted.trained_completions:
        yield f"Z holds {total} samples, but {counted.trained_completions} completions are committed"


def _of_records(run: Path, counted: Audit) -> Iterator[str]:
    """metrics.jsonl has each committed step once, and its steps trained what is committed."""
    lines = [line for line in run_files.lines(run / "metrics.jsonl") if line["step"] <= counted.committed_step]
    times = Counter(int(line["step"]) for line in lines)
    missing = [step for step in range(1, counted.committed_step + 1) if not times[step]]
    if missing:
        yield f"metrics.jsonl lacks {len(missing)} of {counted.committed_step} committed steps, {missing[0]} first"
    if twice := [step for step, count in sorted(times.items()) if count > 1]:
        yield f"metrics.jsonl has {len(twice)} steps more than once, {twice[0]} first"
    trained = sum(int(line["completions"]) for line in lines)
    if trained != counted.trained_completions:
        yield f"metrics.jsonl has {trained} trained completions, but {counted.trained_completions} are committed"


def _of_checkpoints(broker: AdminClient, run: Path, spec: RunSpec, counted: Audit, deep: bool) -> Iterator[str]:
    """The checkpoint that the last commit named is there, and is of that step and run."""
    named = broker.checkpoints()
    if counted.committed_step and named.get(counted.committed_step) != counted.checkpoint:
        yield f"the commit of step {counted.committed_step} names {counted.checkpoint!r}, the kept ones are {named}"
    for step, name in named.items():
        path = run / "checkpoints" / name
        try:
            with run_files.opened(path / "manifest.json") as file:
                manifest = json.load(file)
            found = manifest["step"], manifest["fingerprint"]
        except (run_files.RecordError, OSError, ValueError, RecursionError, KeyError, TypeError) as error:
            yield f"checkpoint {path} cannot be read ({type(error).__name__})"
            continue
        if found != (step, spec.fingerprint):
            yield f"checkpoint {path} is of step {found[0]} of the run {found[1][:12]}, not {step} of this"
        elif deep:
            yield from _of_bytes(path, broker.z() if step == counted.committed_step else None)


def _of_bytes(path: Path, z: dict[int, bytes] | None) -> Iterator[str]:
    """Every file of the checkpoint is what was written; its Z statistics are `z`, unless that is None."""
    from learner.model.checkpoint import verify

    try:
        _, _, found = verify(path)
    except SieveError as error:
        yield str(error)
        return
    if z is not None and found != z:
        other = [prompt for prompt in sorted({*found, *z}) if found.get(prompt) != z.get(prompt)]
        yield f"Z of {len(other)} prompts in checkpoint {path} is not the broker's, prompt {other[0]} first"


def _of_versions(
    config: Config, spec: RunSpec, counted: Audit, versions: dict[int, Published], deep: bool
) -> Iterator[str]:
    """The pointer's history names each version's files by hash, and these are the files that are there."""
    if not versions:
        return
    newest = versions.get(counted.version)
    if newest is None or max(versions) != counted.version:
        yield f"the pointer is on version {counted.version}, but its history ends with {max(versions)}"
        return
    if counted.opened and newest.step != counted.published_step:
        yield f"version {counted.version} was published with {newest.step} steps, not {counted.published_step}"
    if not counted.rolled_back:
        for before, after in zip(sorted(versions), sorted(versions)[1:], strict=False):
            if versions[after].step < versions[before].step:
                yield f"version {after} has {versions[after].step} steps, fewer than version {before}"
    store = open_store(config.weights, spec.weights)
    there = set(store.versions())
    if newest.name not in there:
        yield f"version {newest.name}, which the pointer names, is not in {spec.weights}"
    for named in versions.values():
        if named.name in there:
            try:
                identity = store.fetch(named.name).identity if deep else store.manifest(named.name).identity
            except WeightsError as error:
                yield str(error)
                continue
            if identity != named.identity:
                yield f"version {named.name} has the hash {identity[:12]}…, published was {named.identity[:12]}…"


def _of_evaluations(run: Path, versions: dict[int, Published]) -> Iterator[str]:
    """Each evaluation is of a published version and of its step."""
    for line in run_files.lines(run / "eval.jsonl"):
        named = versions.get(int(line["version"]))
        if named is None or named.step != int(line["step"]):
            yield f"eval.jsonl has version {line['version']} of step {line['step']}, which was not published so"
