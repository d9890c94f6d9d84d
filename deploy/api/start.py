"""Runs and evaluations started from Python: each is a process of the command `sieve`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

import yaml

from broker.plain_files import NotPlain, read_plain
from deploy.api.run import POLL_SECONDS, Run, attach, raise_failure
from deploy.config.load import load
from deploy.config.tree import Config, plain
from deploy.rundir.schema import check_schema
from deploy.sweeps.evaluate import evaluation_directory

Configuration: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Config
"""The path of a YAML file or of a run directory, a dictionary of sections, or a validated configuration."""
Overrides: TypeAlias = Mapping[str, Any] | None
"""Dotted keys with their values: `{"schedule.steps": 20}`."""
COMMAND = (sys.executable, "-P", str(Path(__file__).parents[2] / "sieve.py"))
"""The command `sieve` of this installation, whichever one is on PATH."""


def load_config(config: Configuration, overrides: Overrides = None) -> Config:
    """The validated configuration: `config`, over it the `SIEVE_SECTION__KEY` variables, over these `overrides`.

    The files that it names are checked too, and relative paths become absolute. Raises ConfigError, whose `problems`
    name each wrong key with its value, the limit and the remedy.
    """
    with _file(config) as path:
        return load(path, _assignments(overrides))


def run(
    config: Configuration, overrides: Overrides = None, *, resume: bool = False, fresh: bool = False, view: bool = False
) -> Run:
    """Carry out a run, as `sieve run` does, and return it when it is finished.

    `resume` continues the run that is in the run directory, `fresh` moves it aside; `view` shows progress in the
    terminal. Ctrl-C drains the run, so that it can be resumed, before KeyboardInterrupt is raised. Raises ConfigError
    for settings that cannot be used, RunFailed when the run cannot be started or ends with an error.
    """
    started = _start(config, overrides, resume=resume, fresh=fresh, view=view)
    try:
        return started.wait()
    except KeyboardInterrupt:
        started.stop()
        try:
            started.wait()
        except KeyboardInterrupt:
            started.stop()  # the second one kills
            started.wait()
        raise


def start(config: Configuration, overrides: Overrides = None, *, resume: bool = False, fresh: bool = False) -> Run:
    """Start a run, as `sieve run` does, and return it once it has its run directory.

    `run.watch()` gives its steps as they are trained, `run.wait()` waits for its end, `run.stop()` drains it. It goes
    on when this program ends. Raises as `run` does.
    """
    return _start(config, overrides, resume=resume, fresh=fresh, view=False)


def evaluate(
    config: Configuration,
    checkpoint: str | os.PathLike[str],
    overrides: Overrides = None,
    *,
    fresh: bool = False,
    view: bool = False,
) -> dict[str, Any]:
    """Evaluate `checkpoint` beside the base model on data.eval, as `sieve eval` does; what is there is used again.

    `checkpoint`: a checkpoint of the run, a version of its weights, or any exported model. `fresh` evaluates anew.
    Returns `metrics` (`base` and `checkpoint`: name → [mean, low, high] with the 95 % interval over prompts), `change`
    (paired differences of pass@k), `migration` (prompts from each level of difficulty to each), `base_perplexity`,
    `prompts`, `checkpoint`, `base`, and `run`, the evaluation's directory: `sieve.Run(found["run"]).samples()`.
    Raises ConfigError and RunFailed.
    """
    settings = load_config(config, overrides)
    options = ["--checkpoint", str(Path(checkpoint).absolute()), *(["--fresh"] if fresh else [])]
    with _file(config) as path, tempfile.TemporaryFile() as errors:
        process = _command("eval", path, overrides, options, view, errors)
        try:
            process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
        raise_failure(process.returncode, errors)
    directory = evaluation_directory(settings, Path(checkpoint))
    found: dict[str, Any] = json.loads((directory / "report" / "evaluation.json").read_text(encoding="utf-8"))
    return {**found, "run": str(directory)}


def _start(config: Configuration, overrides: Overrides, *, resume: bool, fresh: bool, view: bool) -> Run:
    directory = load_config(config, overrides).run.path
    stored = directory / "config.yaml"
    before = _signature(stored)
    options = [*(["--resume"] if resume else []), *(["--fresh"] if fresh else [])]
    errors = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the run is looked at)
    with _file(config) as path:
        process = _command("run", path, overrides, options, view, errors)

        # Until the launcher has the directory, another run's files may be there. It locks the directory of a run that
        # it continues, and writes config.yaml into that of a new one.
        def taken() -> bool:
            return _holder(directory) == process.pid if resume else _signature(stored) not in (None, before)

        while process.poll() is None and not taken():
            time.sleep(POLL_SECONDS)
    if process.poll() is not None:
        raise_failure(process.returncode, errors)
    return attach(directory, process, errors)


def _command(
    command: str, path: Path, overrides: Overrides, options: Sequence[str], view: bool, errors: IO[bytes]
) -> subprocess.Popen[bytes]:
    sets = [word for text in _assignments(overrides) for word in ("--set", text)]
    return subprocess.Popen(
        [*COMMAND, command, str(path), *sets, *options, "--view" if view else "--no-view"],
        stdin=subprocess.DEVNULL,
        stdout=None if view else subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,  # a terminal's Ctrl-C reaches this program, which decides what to tell the run
    )


def _signature(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _holder(directory: Path) -> int | None:
    """Process id of the launcher that locked the directory last."""
    try:
        return int(read_plain(directory / "run.lock", 32))
    except (FileNotFoundError, NotPlain, ValueError):
        return None


@contextmanager
def _file(config: Configuration) -> Iterator[Path]:
    """The configuration as a file: the one that is named, or a private one for the time of the context."""
    if isinstance(config, str | os.PathLike):
        path = Path(config)
        if path.is_dir():
            check_schema(path)
            path = path / "config.yaml"
        yield path
        return
    tree = plain(config, secrets=True) if isinstance(config, Config) else dict(config)
    with tempfile.TemporaryDirectory(prefix="sieve-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(_yaml(tree), encoding="utf-8")
        yield path


def _assignments(overrides: Overrides) -> list[str]:
    return [f"{key}={_yaml(value)}" for key, value in (overrides or {}).items()]


def _yaml(value: Any) -> str:
    """`value` as YAML; paths and other objects as their text."""
    return str(yaml.safe_dump(json.loads(json.dumps(value, default=str)), sort_keys=False, allow_unicode=True))
