"""`sieve sweep`: the runs of a plan one after the other, each an ordinary run under `<run.directory>/<name>/`.

A finished run is not repeated, an interrupted one is continued, and a failed one does not keep the others from running.
The manifest `sweep.json` lists the runs. More objectives or seeds extend it; any other change of the settings is
refused, because the runs would not be comparable. Model and prompts are compared by their contents, so that a checkout
may move, and keys that a later release has added by their defaults.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from broker.errors import EX_OK, EX_USAGE, SieveError
from deploy.config.errors import ConfigError
from deploy.config.explain import explain
from deploy.config.tree import Config, plain
from deploy.rundir import run_files
from deploy.rundir.schema import traces
from deploy.sweeps.plan import Planned, Point, plan
from learner.data import fingerprint

MANIFEST = "sweep.json"
SCHEMA = 1


class SweepConflict(SieveError):
    """The directory holds a sweep with other settings."""

    exit_code = EX_USAGE


class SweepFailed(SieveError):
    """Some runs failed; the message says how many and why the first one did."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]


def sweep(
    config: Config, name: str, chosen: Sequence[Point], seeds: int, console: Console, *, command: str, view: bool
) -> int:
    """Run what a sweep still lacks; returns the exit code, 0 or, when it was stopped, 130 or 143.

    `chosen`: the points to compare, with `seeds` runs each; `command` is recorded in the manifest; `view` redraws the
    progress of each run in place. Raises ConfigError, SweepConflict and SweepFailed.
    """
    from deploy.config.checks import problems_of

    runs = plan(config, name, chosen, seeds)
    problems = {line for planned in runs for line in problems_of(planned.config)}
    if problems:
        raise ConfigError(sorted(problems))
    directory = config.run.directory / name
    write_manifest(directory, config, runs, command)
    return _execute(runs, console, view)


def _execute(runs: Sequence[Planned], console: Console, view: bool) -> int:
    import ray

    from deploy.launch.launcher import EX_INTERRUPTED, launch
    from deploy.launch.ray_units import connect

    failed: dict[str, SieveError] = {}
    begin = time.time()
    try:
        for number, planned in enumerate(runs, 1):
            head = f"[{number}/{len(runs)}] {planned.title}"
            if done(planned):
                console.print(f"{head}: finished before", highlight=False, soft_wrap=True)
                continue
            there = bool(traces(planned.path))
            resumed = " (continued)" if there else ""
            console.print(f"{head}: {planned.path}{resumed}", highlight=False, soft_wrap=True)
            if not ray.is_initialized():
                connect(planned.config)  # once for all runs: launch() leaves a Ray that it finds running
            try:
                code = launch(planned.config, console, resume=there, fresh=False, live=view)
            except KeyboardInterrupt:  # before the launcher handles signals: nothing runs yet
                code = EX_INTERRUPTED[signal.SIGINT]
            except SieveError as error:
                failed[planned.title] = error
                console.print(f"{head}: failed: {error}", highlight=False, soft_wrap=True)
                continue
            if code != EX_OK:
                console.print("the sweep is stopped; the same command continues it", highlight=False)
                return code
    finally:
        ray.shutdown()
    if failed:
        title, first = next(iter(failed.items()))
        raise SweepFailed(
            f"{len(failed)} of {len(runs)} runs failed, first {title}: {first}; the same command tries them again",
            first.exit_code,
        )
    console.print(f"{len(runs)} runs finished, {time.time() - begin:.0f} s in this session", highlight=False)
    return EX_OK


def done(planned: Planned) -> bool:
    """Whether the run is finished and its last evaluation on disk."""
    sessions = list(run_files.lines(planned.path / "sessions.jsonl"))
    evaluated = run_files.evaluations(planned.path)
    return (
        bool(sessions)
        and sessions[-1]["outcome"] == "finished"
        and bool(evaluated)
        and int(evaluated[-1]["step"]) == planned.config.schedule.steps
    )


def write_manifest(directory: Path, config: Config, runs: Sequence[Planned], command: str) -> None:
    """Create `sweep.json`, or add new points and seeds to the one that is there.

    Raises SweepConflict where any other setting differs, RecordError where the manifest cannot be read.
    """
    tree = plain(config)
    tree.pop("sweep")
    tree["run"].pop("name")  # the sweep's name decides
    found: dict[str, Any] = {"schema": SCHEMA, "name": directory.name, "settings": tree, "contents": contents(config),
             "runs": [], "commands": [], "machine": machine()}  # fmt: skip
    if (directory / MANIFEST).exists():
        now, found = found, read_manifest(directory)
        known = found.get("contents", {})  # a manifest of an older release has none: compared by paths
        changed = _differences(_comparable(found, known), _comparable(now, now["contents"] if known else {}))
        found["contents"] = now["contents"]
        if changed:
            raise SweepConflict(
                f"{directory}: holds a sweep with other settings ({', '.join(changed[:5])}), whose runs would not be "
                f"comparable with these; choose another name with --name, or undo the change"
            )
    known = {run["name"] for run in found["runs"]}
    for planned in runs:
        if planned.config.run.name not in known:
            point = None if planned.point is None else planned.point.plain()
            found["runs"].append({"name": planned.config.run.name, "seed": planned.seed, "point": point})
    if command and command not in found["commands"]:
        found["commands"].append(command)
    run_files.write_json(directory / MANIFEST, found)


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a sweep's directory. Raises RecordError."""
    path = directory / MANIFEST
    try:
        with run_files.opened(path) as file:
            found = json.load(file)
    except (OSError, ValueError, RecursionError):
        raise run_files.RecordError(f"{path}: cannot be read; `sieve sweep` writes it") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise run_files.RecordError(f"{path}: not of schema {SCHEMA}; run the sweep with this release")
    return found


def contents(config: Config) -> dict[str, str | None]:
    """SHA-256 in hexadecimal of the model and prompt files, by the key that names them."""
    eval_split = config.data.eval
    return {
        "model.path": hashlib.sha256(fingerprint.of_model(config.model.path)).hexdigest(),
        "data.train": fingerprint.of_prompts(config.data.train).hex(),
        "data.eval": None if eval_split is None else fingerprint.of_prompts(eval_split).hex(),
    }


def _comparable(manifest: dict[str, Any], digests: dict[str, str | None]) -> dict[str, Any]:
    """The settings of a manifest without what may differ between comparable runs, defaults of this release added."""
    run = {**manifest["settings"]["run"], "name": manifest["name"]}
    try:
        tree = plain(Config.model_validate({**manifest["settings"], "run": run}))
    except ValidationError as error:
        raise SweepConflict(
            f"{manifest['name']}: holds a sweep whose settings this release cannot read ({explain(error)[0]}); choose "
            f"another name with --name"
        ) from None
    for key in ("name", "directory", "seed"):  # the place of the runs may differ, and each run has its seed
        del tree["run"][key]
    del tree["sweep"]
    for key, digest in digests.items():
        section, name = key.split(".")
        tree[section][name] = digest
    return tree


def _differences(before: Any, now: Any, key: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted(before.keys() | now.keys())
        return [
            line for name in names for line in _differences(before.get(name), now.get(name), f"{key}.{name}".strip("."))
        ]
    return [] if before == now else [f"{key} was {before!r}, now {now!r}"]


def machine() -> dict[str, Any]:
    """The hardware behind the wall times, without anything that identifies the machine."""
    return {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
