"""Startup of the learner: tokenise the prompts, open the run, load and shard the models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig

from broker.errors import EX_USAGE, RunConflict, SieveError
from broker.model_files import problem_of
from broker.queue.state import RunSpec
from broker.queue.wire import Prompt, pack
from broker.settings import ModelSettings
from broker.weights.factory import location_of
from learner.data import fingerprint
from learner.data.prompts import end_tokens, load_tokenizer, read_prompts
from learner.data.rows import pass_rates
from learner.model.lora import Unadapted, attach
from learner.model.model import ModelUnusable, Scorer, load, shard, verify_scoring
from learner.objective.registry import build
from learner.ranks import Ranks
from learner.resumption import MAY_CHANGE, Change, changes, of_the_training, refused
from learner.settings import LearnerConfig
from learner.train.partition import PartitionFunction
from learner.train.step import Trainer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FLOAT16_LOSS_SCALE = 2.0**14
"""The loss is a mean over all tokens of a step, so its gradients start below float16's smallest number."""


class SettingsUnfit(SieveError):
    """Settings that do not go with this model or these prompts."""

    exit_code = EX_USAGE


@dataclass(frozen=True)
class Run:
    """The run's data: what a rank keeps, and what rank 0 writes into the broker once it holds the run."""

    fingerprint: str
    spec: RunSpec
    train: list[Prompt]
    held_out: list[Prompt]
    prompts: list[NDArray[np.int32]]
    """Tokens of every training prompt."""

    @property
    def eval_prompts(self) -> int:
        return len(self.held_out)


def compute_dtype(model: ModelSettings) -> torch.dtype:
    """The precision that forward and backward run in, and that weights are published in."""
    return DTYPES[model.dtype]


def read_run(config: LearnerConfig) -> Run:
    """Tokenise the prompts and describe the run; nothing is written.

    Raises DataUnusable, ModelUnusable, SettingsUnfit.
    """
    path, sampling, schedule = config.model.path, config.sampling, config.schedule
    if not (path / "config.json").is_file():
        raise ModelUnusable(f"model.path = {path} holds no config.json: give the directory of a Hugging Face model")
    if problem := problem_of(path):
        raise ModelUnusable(problem)
    try:
        model = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        vocabulary = int(model.vocab_size)
    except Exception as error:  # of a foreign library about foreign files
        raise ModelUnusable(
            f"model.path = {path}: config.json cannot be used ({error}): copy the model again"
        ) from None
    tokenizer = load_tokenizer(path)
    context = int(getattr(model, "max_position_embeddings", 0) or 1 << 30)
    longest = context - sampling.max_new_tokens
    if longest < 1:
        raise SettingsUnfit(
            f"sampling.max_new_tokens = {sampling.max_new_tokens} leaves no room for a prompt in the model's context "
            f"of {context} tokens: lower it"
        )
    train = read_prompts(config.data.train, tokenizer, vocabulary=vocabulary, longest=longest, data=config.data)
    eval_prompts: list[Prompt] = []
    if config.data.eval is not None:
        eval_prompts = read_prompts(
            config.data.eval, tokenizer, vocabulary=vocabulary, longest=longest, data=config.data
        )
        eval_prompts = eval_prompts[: config.evaluation.prompts]
    prompts = [np.frombuffer(prompt.tokens, "<i4") for prompt in train]
    needed = max(len(prompt) for prompt in prompts) + sampling.max_new_tokens
    if config.learner.micro_batch_tokens < needed:
        raise SettingsUnfit(
            f"learner.micro_batch_tokens = {config.learner.micro_batch_tokens} is less than the longest prompt with "
            f"the longest answer, {needed} tokens: raise it to at least that"
        )
    fingerprint = fingerprint_of(config, train, eval_prompts)
    spec = RunSpec(
        fingerprint=fingerprint,
        seed=config.run.seed,
        steps=schedule.steps,
        group_size=sampling.group_size,
        groups_per_step=schedule.groups_per_step,
        publish_every=schedule.publish_every,
        max_staleness=schedule.max_staleness,
        forced_staleness=schedule.forced_staleness,
        max_queued_bytes=config.broker.max_queued_bytes,
        max_new_tokens=sampling.max_new_tokens,
        train_prompts=len(train),
        eval_prompts=len(eval_prompts),
        eos_token_ids=end_tokens(path, model, tokenizer),
        weights=location_of(config.run),
        unsafe=config.unsafe,
        settings=of_the_training(config.model_dump(mode="json")),
    )
    return Run(fingerprint, spec, train, eval_prompts, prompts)


def changed_settings(known: RunSpec | None, spec: RunSpec, name: str) -> list[Change]:
    """The settings in which `spec` differs from the run as it was opened. Raises RunConflict for one that may not."""
    found = [] if known is None else changes(known.settings, spec.settings)
    if wrong := refused(found):
        raise RunConflict(
            f"run {name!r} cannot go on with other settings ({'; '.join(map(str, wrong[:5]))}): undo the change, or "
            f"choose another run.name; what may change is {', '.join(MAY_CHANGE)}"
        )
    return found


def fingerprint_of(config: LearnerConfig, train: Sequence[Prompt], eval_prompts: Sequence[Prompt]) -> str:
    """Hash of what must not change within a run: base model, adapters, prompts, seed, sampling and unsafe settings."""
    digest = hashlib.sha256()
    digest.update(config.model.dtype.encode())
    digest.update(fingerprint.of_model(config.model.path))
    if config.model.lora is not None:
        digest.update(config.model.lora.model_dump_json().encode())
    for lane in (train, eval_prompts):
        digest.update(len(lane).to_bytes(8, "little"))
        for prompt in lane:
            digest.update(pack(prompt))
    digest.update(json.dumps([config.run.seed, config.sampling.model_dump(mode="json")], sort_keys=True).encode())
    for setting in config.unsafe:
        digest.update(setting.encode())
    return digest.hexdigest()


def given_rates(config: LearnerConfig) -> dict[int, float]:
    """Training prompt -> base pass rate as its row gives it, for `learner.partition.mode: fixed`; else empty.

    Raises DataUnusable.
    """
    if config.learner.partition.mode != "fixed":
        return {}
    return dict(enumerate(pass_rates(config.data.train, config.data)))


def build_trainer(config: LearnerConfig, ranks: Ranks) -> Trainer:
    """The trainer with its two models, the policy and the frozen base, sharded. Collective.

    Without adapters: the policy in float32 and a base of its own in the computing precision. With them: one base in the
    computing precision, which the policy is with its float32 adapters and the base without. Raises ModelUnusable when
    the architecture would be scored wrongly, TargetsUnmatched when it has no such matrices, DataUnusable.
    """
    path, settings, compute, lora = config.model.path, config.learner, compute_dtype(config.model), config.model.lora
    policy = load(path, torch.float32 if lora is None else compute)
    verify_scoring(Scorer(policy), path, shared_rows=settings.row_tokens > 0)
    if lora is not None:
        attach(policy, lora, config.run.seed)
    sharded = shard(
        policy,
        ranks.mesh,
        compute=compute,
        trainable=True,
        recompute=settings.recompute,
        reshard_after_forward=settings.reshard_after_forward,
    )
    base: Scorer | Unadapted = Unadapted(sharded)
    if lora is None:
        base = shard(
            load(path, compute),
            ranks.mesh,
            compute=compute,
            trainable=False,
            reshard_after_forward=settings.reshard_after_forward,
        )
    return Trainer(
        settings,
        ranks,
        sharded,
        base,
        build(settings.objective, length_norm=float(config.sampling.max_new_tokens)),
        PartitionFunction(settings.partition, given_rates(config)),
        loss_scale=FLOAT16_LOSS_SCALE if compute == torch.float16 else 1.0,
    )
