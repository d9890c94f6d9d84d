"""Checks across settings: combinations that would deadlock, break the method, or fail some time after the start.

Each check yields one line per problem, with the keys, the values, the limit and the remedy. Checks may read the files
that the settings name, of prompt files the first READ_LINES; they write and start nothing and import nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from broker.model_files import problem_of
from broker.printable import one_line
from broker.queue import admission
from broker.settings import PromptSource
from deploy.config.tree import Config
from learner.data.formats.registry import VERIFIER
from learner.data.rows import DataUnusable, count, pass_rates, rows
from verifier.protocol import VerifierError, record_check

READ_LINES = 2000
"""Lines of each prompt file that are checked; the learner checks all of them before it opens the run."""


def problems_of(config: Config, *, files: bool = True) -> Iterator[str]:
    """All problems of `config`; with `files` also those of the model and the prompt files that it names."""
    if files:
        yield from _model(config.model.path)
        yield from _data(config)
    yield from _admission(config)
    yield from _learner(config)
    yield from _evaluation(config, files)


def _model(path: Path) -> Iterator[str]:
    if not path.is_dir():
        what = "is a file" if path.exists() else "no such directory"
        yield (
            f"model.path = {path}: {what}; give a Hugging Face model directory (config.json, *.safetensors, tokenizer "
            f"files); relative paths start at {Path.cwd()}"
        )
    elif not (path / "config.json").is_file():
        yield f"model.path = {path}: has no config.json, so it is no Hugging Face model directory; name one that has"
    elif problem := problem_of(path, headers=False):
        yield problem
    elif not list(path.glob("*.safetensors")):
        yield f"model.path = {path}: has no *.safetensors file; save the model with safe_serialization"


def _data(config: Config) -> Iterator[str]:
    yield from _prompts(config, "data.train", config.data.train)
    yield from _pass_rates(config)
    if config.data.eval is not None:
        yield from _prompts(config, "data.eval", config.data.eval)
        if config.data.eval == config.data.train:
            yield (
                f"data.eval = {config.data.eval}: is the training file, so the evaluation would measure what was "
                f"memorised; split the prompts into two files"
            )


def _prompts(config: Config, key: str, source: PromptSource) -> Iterator[str]:
    """Problems of the first rows of a prompt source: their shape, and verifiers that verifier.serve lacks."""
    served = sorted(config.verifier.serve)
    unserved: dict[str, str] = {}
    if isinstance(source, str):
        # The name of a dataset, which the learner loads, perhaps over the network: only the verifier is known here.
        if config.data.verifier is not None and config.data.verifier not in served:
            unserved[config.data.verifier] = f"data.verifier = {config.data.verifier}"
        elif config.data.verifier is None and config.data.format is not None and VERIFIER not in served:
            unserved[VERIFIER] = f"data.format = {config.data.format}"
    elif not source.is_file():
        what = "is not a file" if source.exists() else "no such file"
        yield f"{key} = {source}: {what}; give a file of prompts; relative paths start at {Path.cwd()}"
        return
    else:
        found = 0
        checks = {name: _record_check(name, queue.factory) for name, queue in config.verifier.serve.items()}
        try:
            for row in islice(rows(source, config.data), READ_LINES):
                found += 1
                if row.verifier not in served:
                    unserved.setdefault(row.verifier, row.where)
                elif (check := checks[row.verifier]) is not None:
                    try:
                        check(row.record)
                    except ValueError as error:
                        yield (
                            f"{key} = {row.where}: the verifier {row.verifier!r} cannot judge by this record, and "
                            f"every answer to it would be an error: {one_line(str(error))[:400]}"
                        )
                        return
        except DataUnusable as error:
            yield f"{key} = {error}"
            return
        if not found:
            yield f"{key} = {source}: is empty; it needs at least one prompt"
    for name, where in unserved.items():
        yield (
            f"{key} = {where} names the verifier {name!r}, which nobody serves (verifier.serve has "
            f"{', '.join(served)}), so its completions would wait for ever; add verifier.serve.{name} or correct it"
        )


def _record_check(name: str, factory: str | None) -> Callable[[Mapping[str, Any]], object] | None:
    """The check of the verifier's records; None where it has none or cannot be imported, which its service says."""
    try:
        return record_check(name, factory)
    except VerifierError:
        return None


def _pass_rates(config: Config) -> Iterator[str]:
    """Missing base pass rates in the first rows, where a fixed Z is made of them."""
    train = config.data.train
    if config.learner.partition.mode != "fixed" or isinstance(train, str) or not train.is_file():
        return
    try:
        for _ in islice(pass_rates(train, config.data), READ_LINES):
            pass
    except DataUnusable as error:
        yield (
            f"learner.partition.mode = fixed: {error}; add the rates, name their column in data.columns.pass_rate, or "
            f"use mode pooled"
        )


def _admission(config: Config) -> Iterator[str]:
    schedule, sampling, broker = config.schedule, config.sampling, config.broker
    try:
        admission.check(schedule, sampling, broker)
    except ValueError as error:
        yield str(error)
        return
    window = admission.window(schedule)
    needed = window * admission.largest_group_bytes(sampling)
    if broker.max_queued_bytes < needed:
        yield (
            f"broker.max_queued_bytes = {broker.max_queued_bytes}: one window of {window} groups "
            f"((schedule.max_staleness + 1) · groups_per_step · publish_every) at full length takes {needed} bytes, so "
            f"memory and not schedule.max_staleness would limit the run; raise it to at least {needed}, or lower "
            f"schedule.max_staleness"
        )
    group = admission.largest_group_bytes(sampling) // sampling.group_size
    if group > broker.max_item_bytes:
        yield (
            f"broker.max_item_bytes = {broker.max_item_bytes}: one completion of sampling.max_new_tokens = "
            f"{sampling.max_new_tokens} takes up to {group} bytes and would be dead-lettered; raise it to at least "
            f"{group}"
        )


def _learner(config: Config) -> Iterator[str]:
    yield from config.learner.objective.problems(config.sampling.group_size)
    steps, warmup = config.schedule.steps, config.learner.optimizer.warmup_steps
    if steps and warmup > steps:
        yield (
            f"learner.optimizer.warmup_steps = {warmup}: longer than the run (schedule.steps = {steps}), so the "
            f"learning rate would never be reached; set it to at most {steps} (5 % is {max(1, steps // 20)})"
        )


def _evaluation(config: Config, files: bool) -> Iterator[str]:
    evaluation, eval_split = config.evaluation, config.data.eval
    if config.schedule.forced_staleness and evaluation.every:
        yield (
            f"evaluation.every = {evaluation.every} with schedule.forced_staleness = "
            f"{config.schedule.forced_staleness}: an evaluation loads newer weights into the actors, and training "
            f"groups sampled meanwhile would be fresher than forced; set evaluation.every = 0"
        )
    if eval_split is None:
        if evaluation.every:
            yield (
                f"evaluation.every = {evaluation.every}: there is nothing to evaluate on; set data.eval, or "
                f"evaluation.every = 0"
            )
        return
    if files and (isinstance(eval_split, str) or eval_split.is_file()):
        try:
            found = count(eval_split, evaluation.prompts)
        except DataUnusable:
            return  # _prompts has reported it
        if found is not None and found < evaluation.prompts:
            yield (
                f"evaluation.prompts = {evaluation.prompts}: data.eval = {eval_split} has only {found} rows; set "
                f"evaluation.prompts = {found} or add prompts"
            )
