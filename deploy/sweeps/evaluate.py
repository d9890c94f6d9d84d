"""`sieve eval`: a checkpoint or exported model evaluated beside the base model, as a run evaluates its versions.

An evaluation is a run of zero steps, with a directory and a broker of its own under `<run>/evaluations/`. The base
model is evaluated there once, unless the run itself has evaluated it on the same prompts. Nothing outside that
directory is changed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from broker.errors import EX_OK
from broker.weights.peft_format import is_adapter
from deploy.config.errors import ConfigError
from deploy.config.tree import Config
from deploy.reports import eval_stats
from deploy.reports.eval_stats import Counted
from deploy.rundir import run_files
from deploy.rundir.schema import check_schema, traces
from learner.data import fingerprint
from learner.difficulty import LEVELS
from learner.evaluation.stats import perplexity

SHOWN = ("pass@1", "pass@4", "pass@16", "pass@64", "pass@128", "pass@256", "distinct_correct", "shannon",
         "gini_simpson")  # fmt: skip
LONGEST_NAME = 64
MEASURED = "measured.json"
"""What an evaluation was of, written beside its results: an equal one is not repeated."""


def evaluate(config: Config, checkpoint: Path, console: Console, *, fresh: bool, view: bool) -> int:
    """Evaluate `checkpoint` and the base model, write evaluation.json and show it; returns the exit code.

    `fresh` repeats the checkpoint's evaluation where it is there; `view` redraws progress in place. Raises ConfigError
    for what is no model, or without data.eval; SieveError as a run does.
    """
    from transformers.utils.logging import disable_progress_bar

    check_schema(config.run.path)
    disable_progress_bar()  # loading a model would draw over the view
    checkpoint = _place(checkpoint)
    model = _model(config, checkpoint)
    after, code = _evaluate_one(config, model, _label(config, checkpoint), console, fresh=fresh, view=view)
    if code != EX_OK:
        return code
    if checkpoint == config.model.path.resolve():
        before = after
    else:
        own = config.run.path
        before = own if _same_measure(config, own) else None  # type: ignore[assignment]
        if before is None:
            before, code = _evaluate_one(config, config.model.path, "base", console, fresh=False, view=view)
            if code != EX_OK:
                return code
    found = compare(before, after) | {"checkpoint": str(checkpoint), "base": str(config.model.path)}
    found["base_perplexity"] = {
        "base": base_perplexity(config, before, own=True),
        "checkpoint": base_perplexity(config, after, own=before == after),
    }
    run_files.write_json(after / "report" / "evaluation.json", found)
    show(found, console)
    for path in (after / "report" / "evaluation.json", after / "eval" / "v00000000.parquet"):
        console.print(str(path), highlight=False, soft_wrap=True)
    return EX_OK


def evaluation_directory(config: Config, checkpoint: Path) -> Path:
    """Where the evaluation of `checkpoint` is, a run directory; report/evaluation.json in it has the comparison."""
    return _settings(config, checkpoint, _label(config, _place(checkpoint))).run.path


def _place(checkpoint: Path) -> Path:
    """The absolute path of `checkpoint` under its own name: <run>/model is a link to what a learner exported."""
    return checkpoint.parent.resolve() / checkpoint.name


def compare(before: Path, after: Path) -> dict[str, Any]:
    """The evaluations of version 0 in two run directories, over the prompts that both have.

    `metrics` of each ([mean, low, high] with the 95 % interval over prompts), `change` (paired differences of pass@k),
    and `migration` (prompts from each level of difficulty to each). Raises RecordError where samples are missing.
    """
    base, tuned = eval_stats.read(before, 0), eval_stats.read(after, 0)
    shared = sorted({counted.prompt for counted in base} & {counted.prompt for counted in tuned})
    base, tuned = [_at(base, index) for index in shared], [_at(tuned, index) for index in shared]
    left, right = eval_stats.estimates([base]), eval_stats.estimates([tuned])
    names = [name for name in left if name.startswith("pass@") and name in right]
    change = {name: eval_stats.difference([tuned], [base], int(name[5:])) for name in names}
    return {
        "prompts": len(shared),
        "metrics": {"base": eval_stats.plain(left), "checkpoint": eval_stats.plain(right)},
        "change": eval_stats.plain(change),
        "migration": eval_stats.migrations([base], [tuned]),
    }


def _at(given: list[Counted], prompt: int) -> Counted:
    return next(counted for counted in given if counted.prompt == prompt)


def base_perplexity(config: Config, run: Path, *, own: bool) -> dict[str, float | None]:
    """The base model's perplexity on the samples of `run`, exp(−Σ log π_b / tokens): of all and of the right ones.

    `own`: the base model itself sampled them, so the sampler's log-probabilities are the base's. None where no sample
    is right.
    """
    from learner.evaluation.results import read_parquet

    rows = list(read_parquet(run / "eval" / "v00000000.parquet"))
    if own:
        sums = [np.array(row.log_probs, float) for row in rows]
    else:
        from learner.data.prompts import load_tokenizer, read_prompts
        from learner.model.perplexity import base_log_probs
        from learner.start import compute_dtype

        assert config.data.eval is not None  # _evaluate_one refuses a configuration without it
        tokenizer = load_tokenizer(config.model.path)
        eval_split = read_prompts(config.data.eval, tokenizer, vocabulary=1 << 31, longest=1 << 31, data=config.data)
        prompts = [np.frombuffer(eval_split[row.prompt].tokens, "<i4") for row in rows]
        sums = base_log_probs(
            config.model.path, prompts, [row.tokens for row in rows], dtype=compute_dtype(config.model),
            budget=config.learner.micro_batch_tokens,
        )  # fmt: skip
    total = {"all": [0.0, 0], "right": [0.0, 0]}
    for row, logs in zip(rows, sums, strict=True):
        for outcome, ids, log_prob in zip(row.outcomes, row.tokens, logs, strict=True):
            for name in ("all", "right") if outcome == "pass" else ("all",):
                total[name][0] += float(log_prob)
                total[name][1] += len(ids)
    return {name: perplexity(logs, int(tokens)) if tokens else None for name, (logs, tokens) in total.items()}


def _model(config: Config, checkpoint: Path) -> Path:
    """The Hugging Face directory of the model to evaluate; a training checkpoint or an adapter is converted to one."""
    if (checkpoint / "config.json").is_file() and list(checkpoint.glob("*.safetensors")):
        return checkpoint
    from learner.model.checkpoint import is_checkpoint

    if not is_checkpoint(checkpoint) and not is_adapter(checkpoint):
        raise ConfigError(
            [
                f"--checkpoint {checkpoint}: neither a checkpoint of a run (…/checkpoints/step-…), nor a Hugging Face "
                f"model directory (config.json, *.safetensors), nor an adapter of model.path (adapter_config.json); "
                f"name one of {config.run.path}/model, /weights or /checkpoints"
            ]
        )
    from learner.start import compute_dtype
    from learner.weights.publish import convert, convert_adapters

    out, base = config.run.path / "evaluations" / "models" / _label(config, checkpoint), config.model.path
    if is_adapter(checkpoint):
        convert_adapters(checkpoint, out, base, compute_dtype(config.model))
    else:
        convert(checkpoint, out, base, compute_dtype(config.model), config.model.lora)
    return out


def _label(config: Config, checkpoint: Path) -> str:
    """The checkpoint's part of the evaluation's name: its own name, with a hash of its path if outside the run."""
    if checkpoint == config.model.path.resolve():
        return "base"
    if checkpoint.is_relative_to(config.run.path.resolve()):
        return checkpoint.name
    return f"{checkpoint.name[:40]}-{hashlib.sha256(str(checkpoint).encode()).hexdigest()[:8]}"


def _settings(config: Config, model: Path, label: str) -> Config:
    """The configuration of the run that evaluates `model`."""
    name = f"{config.run.name}.{label}"
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    run = config.run.model_copy(update={"name": name, "directory": config.run.path / "evaluations"})
    return config.model_copy(
        update={
            "run": run,
            "model": config.model.model_copy(update={"path": model, "lora": None}),
            "schedule": config.schedule.model_copy(update={"steps": 0}),
        }
    )


def _evaluate_one(
    config: Config, model: Path, label: str, console: Console, *, fresh: bool, view: bool
) -> tuple[Path, int]:
    """(directory, exit code) of the evaluation of `model`; one that is finished is not repeated unless `fresh`."""
    if config.data.eval is None:
        raise ConfigError(["data.eval is not set, so there is nothing to evaluate on; name a file of prompts"])
    own = _settings(config, model, label)
    run = own.run
    measured, wanted = run.path / MEASURED, _measure(own)
    if not fresh and _same_measure(own, run.path) and _text(measured) == wanted:
        return run.path, EX_OK
    from deploy.launch.launcher import launch

    there = bool(traces(run.path))
    # An interrupted evaluation is continued; one of another model, prompts or samples, or to be repeated, moved aside.
    cut_off = there and not fresh and not run_files.evaluations(run.path)
    code = launch(own, console, resume=cut_off, fresh=there and not cut_off, live=view)
    if code == EX_OK:
        measured.write_text(wanted, encoding="utf-8")
    return run.path, code


def _measure(config: Config) -> str:
    """What an evaluation is of, as JSON: the model and prompts by their contents, which may change under a path, and
    the settings of sampling."""
    assert config.data.eval is not None
    return json.dumps({
        "model": hashlib.sha256(fingerprint.of_model(config.model.path)).hexdigest(), "dtype": config.model.dtype,
        "eval": fingerprint.of_prompts(config.data.eval).hex(),
        "format": config.data.format, "columns": config.data.columns.model_dump(mode="json"),
        "seed": config.run.seed, "sampling": config.sampling.model_dump(mode="json"), "unsafe": list(config.unsafe),
    }, sort_keys=True)  # fmt: skip


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _same_measure(config: Config, run: Path) -> bool:
    """Whether `run` has evaluated its version 0 on as many prompts and samples as `config` asks for."""
    first = next((record for record in run_files.evaluations(run) if record["version"] == 0), None)
    wanted = (config.evaluation.prompts, config.evaluation.samples)
    return (
        first is not None
        and (int(first["prompts"]), int(first["samples"])) == wanted
        and (run / "eval" / "v00000000.parquet").exists()
    )


def show(found: dict[str, Any], console: Console) -> None:
    """Print the metrics of base and checkpoint, and the migration of prompts between levels of difficulty."""
    title = f"{found['prompts']} held-out prompts, 95 % over problems"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)  # fits into 80 columns
    for name in ("", "base", "checkpoint", "change"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for name in SHOWN:
        if name not in found["metrics"]["base"] or name not in found["metrics"]["checkpoint"]:
            continue
        cells = [_interval(found["metrics"][which][name]) for which in ("base", "checkpoint")]
        change = found["change"].get(name)
        table.add_row(name, *cells, "" if change is None else _interval(change, sign="+"))
    for which, name in (("all", "base perplexity"), ("right", "  of right ones")):
        pair = [found["base_perplexity"][of][which] for of in ("base", "checkpoint")]
        table.add_row(name, *("–" if value is None else f"{value:.3f}" for value in pair), "")
    console.print(table)
    moved = Table(title="prompts: before ↓ after →", title_justify="left")
    for name in ("", *LEVELS):
        moved.add_column(name, justify="right" if name else "left")
    for origin in LEVELS:
        moved.add_row(origin, *(f"{found['migration'][origin][end]:.0f}" for end in LEVELS))
    console.print(moved)


def _interval(value: list[float], sign: str = "") -> str:
    mean, low, high = value
    ends = " ".join(f"{end:{sign}.2f}".replace("0.", ".", 1) for end in (low, high))
    return f"{mean:{sign}.3f} [{ends}]"
