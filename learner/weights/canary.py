"""Whether samplers hold the learner's weights: canaries out with every version, reports in, a stop when they part.

    Δ = |log π_θ(learner) − log π_θ(sampler)| per token, mean over tokens of exactly one version

Two looks at it. Canary: after every load each actor scores sequences that the learner scored under the same weights
(`broker.weights.canary`). Decoding: the samples of a step that are of the weights it starts from, as they were
recorded. Either beyond its bound ends the run: whatever the objective corrects for, it relies on log μ being the
sampler's and log π_θ the published weights'. Nothing of the step is committed; the run resumes from its last
checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch

from broker.errors import EX_MISMATCH, SieveError
from broker.queue.client import Broker
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
from broker.weights.reader import place
from broker.weights.store import WeightsDirectory
from learner.batch.packing import Row, lay_out
from learner.batch.samples import Ids, Samples
from learner.model.model import Scorer, score
from learner.ranks import Ranks
from learner.settings import LearnerConfig
from learner.weights.tensor_groups import Files, assign, best, kind_of, parameters_of, reshard, suspects, unlike

BOUNDS: dict[Precision, float] = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest mean Δ in nats per token. Seen between vLLM and transformers: float32 4e-6 at most on any token, bfloat16
0.0098 in the mean and 0.061 at most; float16 has eight times bfloat16's resolution. The bounds leave a factor of five
and more for larger models; a group of stale tensors shows as a difference that grows with what was learned since."""
LOOK_SECONDS = 0.5
SHOWN_TENSORS = 3


class WeightsDisagree(SieveError):
    """A sampler's log-probs are not those of the weights it claims to hold."""

    exit_code = EX_MISMATCH


@dataclass(frozen=True)
class Mismatch:
    """Sequences on which a sampler and the learner part. `logprobs` are the sampler's, float32 bytes each."""

    version: int
    who: str
    """The actor and its engine, or whose samples these are."""
    decoding: bool
    """Seen in what was sampled, not in a scored canary."""
    mean: float
    bound: float
    precision: str
    sequences: list[tuple[Ids, Ids]]
    logprobs: list[bytes]
    agreed: bool = False
    """Whether the same actors had scored this version's canary within the bound."""


class CanaryWatch:
    """Rank 0 puts canaries out and reads reports; scoring and diagnosis are every rank's. One per learner process."""

    def __init__(self, config: LearnerConfig, ranks: Ranks, broker: Broker, prompts: Sequence[Ids]) -> None:
        self._config, self._ranks, self._canaries, self._broker = config, ranks, Canaries(broker), broker
        self._log = logging.getLogger("sieve.learner")
        self._newest = halves(prompts)
        self._judged: dict[tuple[int, str], Report] = {}
        self._precisions: set[Precision] = {config.model.dtype}
        self._looked = 0.0
        self._trouble: Mismatch | None = None
        self._seen: tuple[float, float] | None = None

    # --- out

    def canary(self, version: int, policy: Scorer) -> Canary:
        """The newest completions, scored under the weights of `version`, which `policy` holds. Collective."""
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
        """Hand it to the actors (rank 0), before its version is published. Safe to repeat."""
        self._canaries.put(epoch, canary, kept)

    # --- in (rank 0)

    def trained(self, samples: Samples, line: dict[str, Any], version: int) -> None:
        """A step's samples and figures: the newest become the next canary, those of the very weights are checked."""
        newest = np.argsort(-samples.oldest, kind="stable").tolist()
        first_of = {int(samples.group[index]): index for index in reversed(newest)}
        chosen = sorted(first_of.values(), key=newest.index)[:SEQUENCES]
        if chosen:
            self._newest = [bounded(*_sequence(samples, index)) for index in chosen]
        bound = self._bound(*self._precisions)
        if line.get("mismatch_staleness") != 0 or not line["mismatch_mean"] > bound:
            return
        exact = [index for index in newest if samples.oldest[index] == version][:SEQUENCES]
        if exact:
            actors = {samples.actors[index] for index in exact}
            self._trouble = Mismatch(
                version=version,
                who=", ".join(sorted(actors)),
                decoding=True,
                mean=line["mismatch_mean"],
                bound=bound,
                precision="/".join(sorted(self._precisions)),
                sequences=[_sequence(samples, index) for index in exact],
                logprobs=[float32(samples.sampler[index]) for index in exact],
                agreed=self._agreed(version, actors, bound),
            )

    def trouble(self) -> bool:
        """Whether samplers and learner have parted: a look at the reports, a few times a second at most."""
        now = time.monotonic()
        if self._trouble is None and now - self._looked >= LOOK_SECONDS:
            self._looked = now
            for report in self._canaries.reports():
                self._judge(report)
        return self._trouble is not None

    def figures(self) -> dict[str, float]:
        """The largest differences reported since the last call, for the step's line; empty when there were none."""
        seen, self._seen = self._seen, None
        return {} if seen is None else {"canary_mean": seen[0], "canary_max": seen[1]}

    def _judge(self, report: Report) -> None:
        place = (report.version, report.actor)
        if self._judged.get(place) == report:
            return
        canary = self._canaries.get(report.version)
        if canary is None:
            return
        self._judged[place] = report
        if len(self._judged) > 1 << 12:
            self._judged = {known: it for known, it in self._judged.items() if known[0] >= report.version - 8}
        self._precisions.add(report.precision)
        mean, largest = canary.difference(report.logprobs)
        bound = self._bound(self._config.model.dtype, report.precision)
        if mean > bound and not self._alive(report.actor):
            self._log.warning("version %d: %s, gone since, was off by %.3g nats", report.version, report.actor, mean)
            return
        former = self._seen or (0.0, 0.0)
        self._seen = max(former[0], mean), max(former[1], largest)
        if mean > bound and self._trouble is None:
            self._trouble = Mismatch(
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
        """Whether each of them has scored the version's canary as the learner does."""
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

    def explain(self, policy: Scorer, weights: WeightsDirectory, *, current: bool, committed: int) -> NoReturn:
        """Raise WeightsDisagree, with the group of tensors to look at. Collective; overwrites `policy`.

        `current`: the policy still holds the weights of the newest version, so that its files can be compared."""
        found = self._ranks.tell(self._trouble)
        assert found is not None, "called for a mismatch only"
        dtype = getattr(torch, self._config.model.dtype)
        where = "what it sampled" if found.decoding else "its canary"
        head = (
            f"version {found.version}: {found.who} and the learner differ by {found.mean:.3g} nats a token on {where}, "
            f"the limit for {found.precision} is {found.bound:g} (learner.mismatch_nats)"
        )
        reason = self._reason(found, policy, weights, dtype, current)
        raise WeightsDisagree(
            f"{head}. {reason}. The run stands at step {committed}, committed: end this actor (a new one loads all "
            f"anew) or leave its engine out, then go on with `sieve run CONFIG --resume`"
        )

    def _reason(
        self, found: Mismatch, policy: Scorer, weights: WeightsDirectory, dtype: torch.dtype, current: bool
    ) -> str:
        if not np.isfinite(found.mean):
            return "Its log-probs are no finite numbers: look at an overflow in its precision, and at its whole load"
        there = self._ranks.tell(weights.versions())
        if found.version not in there:
            return "Its files are deleted already, so no tensor group can be named: see learner.keep_versions"
        files = Files(place(weights.path, found.version))
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
        before = [version for version in there if version < found.version]
        sources = {f"version {before[-1]}": Files(place(weights.path, before[-1]))} if before else {}
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
    """Sequences before anything was sampled: training prompts, their second half taken as the answer."""
    return [
        bounded(prompt[: max(1, len(prompt) // 2)], prompt[len(prompt) // 2 :])
        for prompt in [one for one in prompts if len(one)][:SEQUENCES]
    ]


def bounded(prompt: Ids, answer: Ids) -> tuple[Ids, Ids]:
    """The prompt's end and the answer's beginning: any sequence tells weights apart."""
    return prompt[-PROMPT_TOKENS:], answer[:ANSWER_TOKENS]


def score_sequences(policy: Scorer, sequences: Sequence[tuple[Ids, Ids]], ranks: Ranks) -> list[bytes]:
    """log π of each answer token as float32 bytes, by the one scoring function. Collective: the same on every rank."""
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
