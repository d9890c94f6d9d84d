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
from typing import NoReturn

import numpy as np

from broker.queue.learner_client import LearnerClient
from broker.queue.state import Epoch
from broker.queue.wire import float32, int32
from broker.weights.canary import SEQUENCES, Canaries, Canary, Precision, Report
from broker.weights.store import VersionStore
from learner.batch.samples import Ids, Samples
from learner.model.model import Scorer
from learner.ranks import Ranks
from learner.settings import LearnerConfig
from learner.step_record import StepRecord
from learner.weights.diagnosis import Mismatch, explain
from learner.weights.sequences import bounded, halves, score_sequences, sequence_of

BOUNDS: dict[Precision, float] = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest mean Δ in nats per token, unless `learner.mismatch_nats` is set. Measured between vLLM and transformers:
float32 at most 4e-6 on any token, bfloat16 0.0098 in the mean and at most 0.061; float16 has eight times bfloat16's
resolution. The bounds leave a factor of five or more for larger models. Stale tensors show as a difference that grows
with what was learned since they were loaded."""
LOOK_SECONDS = 0.5


class CanaryWatch:
    """Makes canaries and compares reports. Rank 0 talks to Redis; scoring and diagnosis are collective."""

    def __init__(self, config: LearnerConfig, ranks: Ranks, broker: LearnerClient, prompts: Sequence[Ids]) -> None:
        self._config, self._ranks, self._canaries, self._broker = config, ranks, Canaries(broker), broker
        self._log = logging.getLogger("sieve.learner")
        # The same in every canary: an actor that still has keys and values of earlier weights reuses them for it.
        self._fixed = halves(sorted(prompts, key=len)[-1:])
        self._newest = [*self._fixed, *halves(prompts)][:SEQUENCES]
        self._compared: dict[tuple[int, str], Report] = {}
        self._precisions: set[Precision] = {config.model.dtype}
        self._looked = 0.0
        self._mismatch: Mismatch | None = None
        self._seen: tuple[float, float] | None = None

    # --- canaries

    def canary(self, version: int, policy: Scorer) -> Canary:
        """The longest prompt and the newest completions, with log-probs under `policy`, which holds the weights of
        `version`. Collective."""
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
        chosen = sorted(first_of.values(), key=newest.index)[: SEQUENCES - len(self._fixed)]
        if chosen:
            self._newest = [*self._fixed, *(bounded(*sequence_of(samples, index)) for index in chosen)]
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
                sequences=[sequence_of(samples, index) for index in exact],
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
        return any(heartbeat.id == actor and heartbeat.alive(lease) for heartbeat in self._broker.services())

    def _bound(self, *precisions: Precision) -> float:
        override = self._config.learner.mismatch_nats
        return override if override is not None else max(BOUNDS[precision] for precision in precisions)

    # --- the stop

    def explain(self, policy: Scorer, store: VersionStore, *, current: bool, committed: int) -> NoReturn:
        """Raise WeightsDisagree for the mismatch that was found; arguments as `diagnosis.explain`. Collective."""
        found = self._ranks.tell(self._mismatch)
        assert found is not None, "called only when mismatched() is true"
        published = {number: one.name for number, one in self._broker.versions().items()} if self._ranks.first else None
        named = self._ranks.tell(published)
        explain(
            found, policy, store, self._ranks, self._config.model, named=named, current=current, committed=committed
        )
