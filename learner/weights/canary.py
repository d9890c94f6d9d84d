"""Detection of samplers that do not hold the learner's weights: a canary with every version, and a stop on mismatch.

    Δ = |log π_θ(learner) − log π_θ(sampler)| per token, averaged over tokens of exactly one version

Δ is measured in two ways. On the canary: after every load each actor scores sequences that the learner has scored under
the same weights (`broker.weights.canary`). On what was sampled: the recorded log-probs of those samples of a step that
come from the weights the step starts from. A mean beyond its bound in either ends the run, because every objective
relies on log μ being the sampler's and log π_θ being that of the published weights. The groups of that step are not
committed; the run resumes from its last checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch

from broker.errors import EX_MISMATCH, SieveError, WeightsError
from broker.queue.learner_client import LearnerClient
from broker.queue.state import Epoch
from broker.queue.wire import float32, int32
from broker.weights.canary import (
    ANSWER_TOKENS,
    PROMPT_TOKENS,
    SEQUENCES,
    Canaries,
    Canary,
    Precision,
    Report,
    difference,
)
from broker.weights.store import VersionStore
from learner.batch.packing import Row, lay_out
from learner.batch.samples import Ids, Samples
from learner.model.model import Scorer, score
from learner.ranks import Ranks
from learner.settings import LearnerConfig
from learner.step_record import StepRecord
from learner.weights.tensor_groups import Files, assign, best, kind_of, parameters_of, reshard, suspects, unlike

BOUNDS: dict[Precision, float] = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest mean Δ in nats per token, unless `learner.mismatch_nats` is set. Measured between vLLM and transformers:
float32 at most 4e-6 on any token, bfloat16 0.0098 in the mean and at most 0.061; float16 has eight times bfloat16's
resolution. The bounds leave a factor of five or more for larger models. Stale tensors show as a difference that grows
with what was learned since they were loaded."""
LOOK_SECONDS = 0.5
SHOWN_TENSORS = 3


class WeightsDisagree(SieveError):
    """A sampler's log-probs are not those of the version it reports."""

    exit_code = EX_MISMATCH


@dataclass(frozen=True)
class Mismatch:
    """Sequences on which a sampler and the learner differ beyond the bound."""

    version: int
    who: str
    """The actor and its engine, or the actors whose samples these are."""
    decoding: bool
    """True when it was found in recorded samples, False on the canary."""
    mean: float
    bound: float
    precision: str
    sequences: list[tuple[Ids, Ids]]
    """(prompt ids, answer ids)"""
    logprobs: list[bytes]
    """The sampler's, float32 little-endian, of each answer."""
    agreed: bool = False
    """Whether the same actors had scored this version's canary within the bound."""


class CanaryWatch:
    """Makes canaries and compares reports. Rank 0 talks to Redis; scoring and diagnosis are collective."""

    def __init__(self, config: LearnerConfig, ranks: Ranks, broker: LearnerClient, prompts: Sequence[Ids]) -> None:
        self._config, self._ranks, self._canaries, self._broker = config, ranks, Canaries(broker), broker
        self._log = logging.getLogger("sieve.learner")
        self._newest = halves(prompts)
        self._compared: dict[tuple[int, str], Report] = {}
        self._precisions: set[Precision] = {config.model.dtype}
        self._looked = 0.0
        self._mismatch: Mismatch | None = None
        self._seen: tuple[float, float] | None = None

    # --- canaries

    def canary(self, version: int, policy: Scorer) -> Canary:
        """The newest completions with log-probs under `policy`, which holds the weights of `version`. Collective."""
        sequences = self._ranks.tell(self._newest if self._ranks.first else None)
        scores = score_sequences(policy, sequences, self._ranks)
        return Canary(
            version=version,
            precision=self._config.model.dtype,
            prompts=tuple(int32(prompt) for prompt, _ in sequences),
            answers=tuple(int32(answer) for _, answer in sequences),
            logprobs=tuple(scores),
        )

    def put(self, canary: Canary, epoch: Epoch, kept: Sequence[int]) -> None:
        """Store `canary` for the actors (rank 0), before its version is published. Safe to repeat."""
        self._canaries.put(epoch, canary, kept)

    # --- reports and samples (rank 0)

    def trained(self, samples: Samples, record: StepRecord, version: int) -> None:
        """Take a step's samples and record: the newest samples become the next canary; those sampled with `version` are
        checked."""
        newest = np.argsort(-samples.oldest, kind="stable").tolist()
        first_of = {int(samples.group[index]): index for index in reversed(newest)}
        chosen = sorted(first_of.values(), key=newest.index)[:SEQUENCES]
        if chosen:
            self._newest = [bounded(*_sequence(samples, index)) for index in chosen]
        bound = self._bound(*self._precisions)
        mean = record.mismatch_mean
        if record.mismatch_staleness != 0 or mean is None or not mean > bound:
            return
        exact = [index for index in newest if samples.oldest[index] == version][:SEQUENCES]
        if exact:
            actors = {samples.actors[index] for index in exact}
            self._mismatch = Mismatch(
                version=version,
                who=", ".join(sorted(actors)),
                decoding=True,
                mean=mean,
                bound=bound,
                precision="/".join(sorted(self._precisions)),
                sequences=[_sequence(samples, index) for index in exact],
                logprobs=[float32(samples.sampler[index]) for index in exact],
                agreed=self._agreed(version, actors, bound),
            )

    def mismatched(self) -> bool:
        """Whether a mismatch beyond its bound was found. Reads new reports, every LOOK_SECONDS at most."""
        now = time.monotonic()
        if self._mismatch is None and now - self._looked >= LOOK_SECONDS:
            self._looked = now
            for report in self._canaries.reports():
                self._compare(report)
        return self._mismatch is not None

    def largest_differences(self) -> tuple[float, float] | tuple[None, None]:
        """(largest mean, largest of a token), nats, reported since the last call; Nones when there was no report."""
        seen, self._seen = self._seen, None
        return seen or (None, None)

    def _compare(self, report: Report) -> None:
        place = (report.version, report.actor)
        if self._compared.get(place) == report:
            return
        canary = self._canaries.get(report.version)
        if canary is None:
            return
        self._compared[place] = report
        if len(self._compared) > 1 << 12:
            self._compared = {known: it for known, it in self._compared.items() if known[0] >= report.version - 8}
        self._precisions.add(report.precision)
        mean, largest = canary.difference(report.logprobs)
        bound = self._bound(self._config.model.dtype, report.precision)
        if mean > bound and not self._alive(report.actor):
            self._log.warning(
                "version %d: %s, which has ended since, differed by %.3g nats", report.version, report.actor, mean
            )
            return
        former = self._seen or (0.0, 0.0)
        self._seen = max(former[0], mean), max(former[1], largest)
        if mean > bound and self._mismatch is None:
            self._mismatch = Mismatch(
                version=report.version,
                who=f"{report.actor} (engine {report.engine})",
                decoding=False,
                mean=mean,
                bound=bound,
                precision=report.precision,
                sequences=canary.sequences,
                logprobs=list(report.logprobs),
            )

    def _agreed(self, version: int, actors: set[str], bound: float) -> bool:
        """Whether each of `actors` has scored the version's canary within the bound."""
        canary = self._canaries.get(version)
        reports = [one for one in self._canaries.reports() if one.version == version and one.actor in actors]
        return (
            canary is not None
            and {one.actor for one in reports} == actors
            and all(canary.difference(one.logprobs)[0] <= bound for one in reports)
        )

    def _alive(self, actor: str) -> bool:
        lease = self._config.broker.lease_seconds
        return any(
            heartbeat.id == actor and heartbeat.age_seconds < lease and heartbeat.phase != "stopped"
            for heartbeat in self._broker.services()
        )

    def _bound(self, *precisions: Precision) -> float:
        override = self._config.learner.mismatch_nats
        return override if override is not None else max(BOUNDS[precision] for precision in precisions)

    # --- the stop

    def explain(self, policy: Scorer, store: VersionStore, *, current: bool, committed: int) -> NoReturn:
        """Raise WeightsDisagree, naming the tensors that are wrong. Collective; overwrites `policy`.

        `current`: whether the policy still holds the weights of the newest version, so that it can be compared with the
        published files.
        """
        found = self._ranks.tell(self._mismatch)
        assert found is not None, "called only when mismatched() is true"
        dtype = getattr(torch, self._config.model.dtype)
        where = "what it sampled" if found.decoding else "its canary"
        head = (
            f"version {found.version}: {found.who} and the learner differ by {found.mean:.3g} nats per token on "
            f"{where}; the limit for {found.precision} is {found.bound:g} (learner.mismatch_nats)"
        )
        reason = self._reason(found, policy, store, dtype, current)
        raise WeightsDisagree(
            f"{head}. {reason}. The run is committed up to step {committed}: end this actor (a new one loads all "
            f"weights again), or run without its engine, then go on with `sieve run CONFIG --resume`"
        )

    def _files(self, store: VersionStore, version: int) -> Files | str:
        """The verified files of `version`; the error as a text when any rank cannot read them. Collective."""
        directory, error = None, ""
        try:
            directory = store.fetch(version).directory
        except WeightsError as failure:
            error = str(failure)
        errors = [one for one in self._ranks.gather(error) if one]
        return errors[0] if errors or directory is None else Files(directory)

    def _reason(self, found: Mismatch, policy: Scorer, store: VersionStore, dtype: torch.dtype, current: bool) -> str:
        if not np.isfinite(found.mean):
            return "Its log-probs are not finite: look for an overflow in its precision, or a load that failed"
        there = self._ranks.tell(store.versions())
        if found.version not in there:
            return "Its files are deleted already, so no tensor group can be named: raise learner.keep_versions"
        files = self._files(store, found.version)
        if isinstance(files, str):
            return f"Its files cannot be read, so no tensor group can be named: {files}"
        if current and found.version == there[-1]:
            wrong = unlike(policy, files, dtype)
            if wrong:
                return f"The published files are not what the learner holds: look at {_kinds(wrong)}, {_few(wrong)}"
        for name, parameter in parameters_of(policy).items():
            if name in files:
                assign(parameter, files[name])

        def gap() -> float:
            return difference(score_sequences(policy, found.sequences, self._ranks), found.logprobs)[0]

        plain = gap()
        if found.agreed:
            return (
                "On this version's canary they agreed, so the weights are right: look at decoding (a KV or prefix "
                "cache kept over an update, log-probs reported after a temperature or mask)"
            )
        if plain <= found.bound:
            return "The published files give the sampler's log-probs: the learner scored with something else"
        sources: dict[str, Files] = {}
        if found.version > there[0]:
            before = max(version for version in there if version < found.version)
            former = self._files(store, before)
            if isinstance(former, Files):
                sources[f"version {before}"] = former
        sources["the base model"] = Files(self._config.model.path)
        tried = list(suspects(policy, files, sources, gap, dtype))
        culprit = best(tried, max(found.bound, plain / 10))
        if culprit is None:
            closest = min(tried, key=lambda suspect: suspect.gap, default=None)
            hint = f" (closest: {closest.group} of {closest.source}, {closest.gap:.3g} left)" if closest else ""
            return (
                f"No group of tensors kept from before explains it{hint}: look at the engine's precision, quantisation "
                f"and attention settings, and at a load that ended half-way"
            )
        return (
            f"Look at the tensor group {culprit.group}: with it still that of {culprit.source} the learner gives the "
            f"sampler's log-probs ({culprit.gap:.3g} left), so the update did not reach it: {_few(culprit.tensors)}"
        )


def halves(prompts: Sequence[Ids]) -> list[tuple[Ids, Ids]]:
    """Sequences for the first canary, before anything was sampled: the second half of each prompt is its answer."""
    return [
        bounded(prompt[: max(1, len(prompt) // 2)], prompt[len(prompt) // 2 :])
        for prompt in [one for one in prompts if len(one)][:SEQUENCES]
    ]


def bounded(prompt: Ids, answer: Ids) -> tuple[Ids, Ids]:
    """The end of the prompt and the beginning of the answer, cut to a canary's limits."""
    return prompt[-PROMPT_TOKENS:], answer[:ANSWER_TOKENS]


def score_sequences(policy: Scorer, sequences: Sequence[tuple[Ids, Ids]], ranks: Ranks) -> list[bytes]:
    """log π of each answer token as float32 bytes, computed as in training. Collective: the same on every rank."""
    rows = [Row(at, (0,), len(prompt) + len(answer)) for at, (prompt, answer) in enumerate(sequences)]
    prompts, answers = [prompt for prompt, _ in sequences], [[answer] for _, answer in sequences]
    layout = lay_out(rows, prompts, answers, list(range(len(rows)))).to(ranks.device)
    with torch.no_grad():
        found = score(policy, layout).cpu().numpy()
    reshard(policy)
    return [float32(found[at, : len(answer)]) for at, (_, answer) in enumerate(sequences)]


def _sequence(samples: Samples, index: int) -> tuple[Ids, Ids]:
    group = int(np.searchsorted(samples.first, index, side="right")) - 1
    return samples.prompts[group], samples.completions[group][index - samples.first[group]]


def _kinds(names: Sequence[str]) -> str:
    return ", ".join(sorted({kind_of(name) for name in names}))


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_TENSORS} more" if len(names) > SHOWN_TENSORS else ""
    return ", ".join(names[:SHOWN_TENSORS]) + more
