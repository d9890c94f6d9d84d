"""The learner service: open the run, then lease → train → publish → checkpoint and commit, until the steps are done.

Rank 0 decides what comes next and all ranks carry it out, so that their collectives match. Only rank 0 calls the
broker, except that every rank fetches its groups. A kill at any moment is harmless because

- groups are committed only after a checkpoint that contains their gradient is durable, and with it;
- the version pointer moves only after a version's files are complete;
- a restart loads the newest checkpoint, settles it (`begin(step)`, `commit(step)`), and publishes what it loaded under
  a new version number if actors have seen newer weights than these: a version never means two sets of weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import torch

from broker.errors import RunBusy, SieveError
from broker.queue import admission
from broker.queue.heartbeat import Role
from broker.queue.learner_client import LearnerClient
from broker.queue.state import Epoch
from broker.queue.wire import float32
from broker.runtime.service import Service
from broker.weights.broadcast import BroadcastCoordinator
from broker.weights.factory import location_of, open_store
from learner.batch.samples import fetch
from learner.evaluation.collector import EvaluationCollector
from learner.metrics import Journal, LearnerMetrics, PartitionSummary, step_record, whole_step
from learner.model.checkpoint import Checkpoints, Progress
from learner.objective.sequences import Sequences
from learner.ranks import Ranks
from learner.settings import LearnerConfig
from learner.start import Run, build_trainer, compute_dtype, open_run
from learner.step_record import StepRecord
from learner.weights.broadcast import Broadcaster, BroadcastMetrics, open_broadcaster
from learner.weights.canary import CanaryWatch
from learner.weights.publish import export, export_adapters, publish_weights

Order = Literal["train", "publish", "checkpoint", "finish", "stop", "idle"]
POLL_SECONDS = 0.02
"""Between two requests for ready groups: a few per cent of the shortest step."""
EVAL_GROUPS = 8
"""Groups of evaluations read between two steps: a few per cent of a short step."""
EVAL_GROUPS_AT_THE_END = 64


class TooManyRefusals(SieveError):
    """More steps in a row were refused than `learner.refusals_in_a_row` allows."""


class LearnerService(Service[LearnerClient]):
    """One rank of the learner. RANK and WORLD_SIZE say which; without them it is the only one."""

    role: ClassVar[Role] = "learner"
    client = LearnerClient
    grace_seconds = 120.0

    def __init__(self, config: LearnerConfig, *, index: int = 0, url: str | None = None) -> None:
        super().__init__(config, index=index, url=url)
        self.config = config
        self.metrics = LearnerMetrics(self.registry)
        self.ranks: Ranks
        self.progress = Progress()
        self.committed = 0
        self._agreed_stop = False
        self._refused_in_a_row = 0
        self._idle_since = time.perf_counter()
        self._pending: tuple[StepRecord, Sequences | None] | None = None
        self._done_since: float | None = None
        self._ess = float("nan")
        """Effective sample size of the ratios that the objective weighs with, in the newest step; a share."""
        self._admitted = 0
        """The staleness that admission aims at (rank 0)."""

    # --- setting up

    def setup(self) -> None:
        settings = self.config.learner
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.ranks = Ranks(settings.device, settings.collective_seconds)
        self.phase("loading")
        self.run_data: Run = open_run(self.config, self.ranks, self.broker)
        path = self.config.run.path
        self.trainer = build_trainer(self.config, self.ranks)
        self.weights = open_store(self.config.weights, location_of(self.config.run))
        self.checkpoints = Checkpoints(path / "checkpoints", self.ranks)
        self.journal = Journal(path / "metrics.jsonl")
        self.broadcaster = self._open_broadcaster() if self.ranks.first else None
        self.evaluation = EvaluationCollector(self.broker, self.weights, path, self._evaluated)
        self.canary = CanaryWatch(self.config, self.ranks, self.broker, self.run_data.prompts)
        self.z_summary = PartitionSummary(self.trainer.partition)
        self.epoch: Epoch = self._resume()
        self.metrics.of_field["step"].set(self.progress.step)
        self.metrics.committed.set(self.committed)
        self._publish_at_start()
        self._idle_since = time.perf_counter()

    def _open_broadcaster(self) -> Broadcaster | None:
        """None with `weights.broadcast: none`. Raises BroadcastUnavailable."""
        coordinator, metrics = BroadcastCoordinator(self.broker), BroadcastMetrics(self.registry)
        return open_broadcaster(self.config.weights, coordinator, metrics, self.log, self.wait)

    def _resume(self) -> Epoch:
        """Load the newest checkpoint and take the run: its steps are committed, later ones are done again."""
        steps = self.ranks.tell(self.checkpoints.steps())
        fingerprint = self.run_data.fingerprint
        self.progress = Progress(fingerprint=fingerprint)
        if steps:
            self.progress = self.checkpoints.load(
                steps[-1], self.trainer.policy, self.trainer.optimizer, fingerprint=fingerprint
            )
            self.trainer.partition.load(self.progress.z)
        epoch = self.ranks.tell(self._begin() if self.ranks.first else None)
        step = self.progress.step
        if self.ranks.first:
            if step:
                self.broker.commit(epoch, step, self.progress.z)
            self.journal.truncate(step)
            self.log.info(
                "epoch %d: step %d, version %d, %d groups returned",
                epoch.number, step, epoch.version, epoch.returned_groups,
            )  # fmt: skip
            self._admitted = self.broker.admitted()
        self.committed = step
        return epoch

    def _begin(self) -> Epoch:
        """Take the run, waiting for the lease of a previous learner that has just died. Raises RunBusy."""
        deadline = time.monotonic() + 2 * self.config.broker.lease_seconds
        while True:
            try:
                return self.broker.begin(self.id, self.progress.step)
            except RunBusy:
                if time.monotonic() > deadline or self.wait("the previous learner's lease", 0.25):
                    raise

    def _publish_at_start(self) -> None:
        """Make sure that the newest version is the weights just loaded."""
        known = self.epoch
        there = self.ranks.tell(self.weights.versions())
        if self.ranks.first and known.opened and 0 in there:
            self._request_evaluation(0)  # the former learner may have died between publishing the base and this
        if known.opened and known.version == self.progress.version and known.version in there:
            self.metrics.version.set(known.version)
        else:
            self._publish(known.version + 1 if known.opened else self.progress.version)

    # --- the loop

    def step(self) -> None:
        """Carry out rank 0's next order on all ranks."""
        order, group_ids = self._agree()
        if order == "train":
            self._train(group_ids)
        elif order == "publish":
            self._publish(self.progress.version + 1)
        elif order == "checkpoint":
            self._checkpoint()
        elif order == "finish":
            self._finish()
        elif order == "stop":
            now = self.progress
            current = now.step == now.published_step
            self.canary.explain(self.trainer.policy, self.weights, current=current, committed=self.committed)

    def _agree(self) -> tuple[Order, list[str]]:
        """Rank 0's next order, and whether any rank has been asked to stop: the same answer everywhere."""
        mine = self._next() if self.ranks.first and not self.stopping.is_set() else None
        answers = self.ranks.gather((mine, self.stopping.is_set()))
        if any(stop for _, stop in answers):
            self._agreed_stop = True
            self.request_stop("a rank was asked to stop")
        return answers[0][0] or ("idle", [])

    def _next(self) -> tuple[Order, list[str]]:
        """The next order (rank 0)."""
        if self.canary.mismatched():
            return "stop", []
        schedule, now = self.config.schedule, self.progress
        last = now.step >= schedule.steps
        if now.step - now.published_step >= (1 if last else schedule.publish_every):
            return "publish", []
        self._write_line()
        if now.step - self.committed >= (1 if last else schedule.checkpoint_every):
            return "checkpoint", []
        if last:
            return self._await_evaluations()
        busy = self.evaluation.poll(self.epoch, EVAL_GROUPS)
        group_ids = self.broker.lease(self.epoch, now.step + 1, schedule.groups_per_step)
        if group_ids:
            return "train", group_ids
        self.phase("waiting")
        if not busy:
            self.wait("ready groups", POLL_SECONDS)
        return "idle", []

    def drain(self) -> None:
        """Checkpoint and commit the steps since the last checkpoint. Collective."""
        while not self._agreed_stop and not self.finished.is_set():
            self.step()  # other ranks may still be in the middle of an order
        if self.progress.step > self.committed:
            self._checkpoint()
        if self.broadcaster is not None:
            self.broadcaster.close()
        self.ranks.close()

    # --- the orders

    def _train(self, group_ids: list[str]) -> None:
        self.phase("training")
        begin = time.perf_counter()
        before, schedule = self.progress, self.config.schedule
        samples = fetch(
            self.ranks,
            group_ids,
            self.run_data.prompts,
            lambda wanted: self.retrying(lambda: self.broker.groups(wanted)),
        )
        unscored = [index for index, base in enumerate(samples.base) if base is None]
        clock = {"waiting": begin - self._idle_since, "fetch": time.perf_counter() - begin}

        def scored() -> None:
            # A score that is not finite refuses this step; it must not become the completion's score for ever.
            found = {samples.keys[index]: samples.base[index] for index in unscored}
            scores = {
                key: float32(value) for key, value in found.items() if value is not None and np.isfinite(value).all()
            }
            if scores:
                self.retrying(lambda: self.broker.store_base(scores))
            self.metrics.scored.inc(len(scores))

        step = before.step + 1
        progress = step / schedule.steps
        report = self.trainer.step(samples, step=step, progress=progress, version=before.version, scored=scored)
        # From here on the step is done: whatever fails below must not repeat it.
        self.progress = replace(before, step=step)
        sequences = whole_step(self.ranks, report)
        if self.ranks.first:
            record = step_record(
                sequences, report, self.trainer.objective, step=step, version=before.version, progress=progress,
                current=before.published_step == before.step,
            )  # fmt: skip
            self.canary.trained(samples, record, before.version)
            record.canary_mean, record.canary_max = self.canary.largest_differences()
            record.z_narrow_share = self.z_summary.narrow_share()
            record.admitted_staleness = self._admitted
            ess = getattr(record, self.config.learner.objective.staleness_ess)
            self._ess = float("nan") if ess is None else ess
            for part, seconds in (clock | report.seconds).items():
                setattr(record, f"seconds_{part}", seconds)
            self._pending = record, sequences
        self._note_refusal(report.refused, step, group_ids)

    def _note_refusal(self, refused: str, step: int, group_ids: list[str]) -> None:
        self._refused_in_a_row = self._refused_in_a_row + 1 if refused else 0
        if refused:
            self.log.warning(
                "step %d refused, weights unchanged: %s; groups %s … %s", step, refused, group_ids[0], group_ids[-1]
            )
        if self._refused_in_a_row >= self.config.learner.refusals_in_a_row:
            raise TooManyRefusals(
                f"{self._refused_in_a_row} steps in a row up to {step} were refused ({refused}), the limit "
                f"learner.refusals_in_a_row: lower learner.optimizer.lr, or train in bfloat16 or float32 instead of "
                f"float16; the run resumes from step {self.committed}"
            )

    def _publish(self, version: int) -> None:
        self.phase("publishing")
        begin = time.perf_counter()
        now, model = self.progress, self.config.model
        first, dtype = self.ranks.first, compute_dtype(model)
        publish_weights(
            self.weights, version, self.trainer.policy, model.path, dtype, first=first, step=now.step,
            delta=self.config.weights.delta,
            meanwhile=self._send(version) if first else None,
        )  # fmt: skip
        canary = self.canary.canary(version, self.trainer.policy)
        if self.ranks.first:
            self.retrying(lambda: self.canary.put(canary, self.epoch, self.weights.versions()))
            target, bound = self.config.schedule.ess_target, self.config.schedule.max_staleness
            self._admitted = admission.tightened(self._admitted, bound=bound, ess=self._ess, target=target)
            self.retrying(lambda: self.broker.publish(self.epoch, version, now.step, admitted=self._admitted))
            every, last = self.config.evaluation.every, now.step >= self.config.schedule.steps
            if last or version == 0 or (every and version % every == 0):
                self._request_evaluation(version)
            kept = self.config.learner.keep_versions + self.config.schedule.forced_staleness
            self.weights.keep(kept, {*self.evaluation.pending, *self._being_fetched()})
        self.progress = replace(now, version=version, published_step=now.step)
        self.metrics.version.set(version)
        self._write_line(publish=time.perf_counter() - begin)

    def _being_fetched(self) -> set[int]:
        """Versions that live actors were reading at their last heartbeat.

        An actor whose version is deleted all the same starts again from the newest one.
        """
        lease = self.config.broker.lease_seconds
        heartbeats = self.retrying(self.broker.services)
        return {
            int(heartbeat.values["fetching"])
            for heartbeat in heartbeats
            if heartbeat.alive(lease) and "fetching" in heartbeat.values
        }

    def _send(self, version: int) -> Callable[[dict[str, torch.Tensor]], object] | None:
        """What broadcasts `version` to the actors that are there; None with `weights.broadcast: none`."""
        broadcaster = self.broadcaster
        return None if broadcaster is None else lambda state: broadcaster.send(self.epoch, version, state)

    def _write_line(self, publish: float = 0.0) -> None:
        """Write and export the record of the step that has just ended, once its publication is timed too."""
        if self._pending is not None:
            record, sequences = self._pending
            end = time.perf_counter()
            record.seconds_publish, record.seconds = publish, end - self._idle_since
            self.journal.append(record)
            self.metrics.observe(record, sequences)
            self.values = {
                "step": record.step, "steps": self.config.schedule.steps, "version": self.progress.version,
                "pass_rate": record.pass_rate or 0.0, "ess": record.ess_rho_alpha or 0.0,
                "staleness": record.staleness_mean or 0.0, "step_seconds": record.seconds,
                "tokens_per_second": (record.tokens or 0) / record.seconds,
            }  # fmt: skip
            self._pending = None
            self._idle_since = end

    def _checkpoint(self) -> None:
        self._write_line()
        self.phase("checkpointing")
        begin = time.perf_counter()
        now = replace(self.progress, z=self.trainer.partition.pack())
        self.checkpoints.save(now, self.trainer.policy, self.trainer.optimizer)
        if self.ranks.first:
            reply = self.retrying(lambda: self.broker.commit(self.epoch, now.step, now.z))
            if reply.duplicates:
                self.log.error("step %d: %d groups had been committed before", now.step, reply.duplicates)
        self.committed = now.step
        self.checkpoints.keep(self.config.learner.keep_checkpoints, now.step)
        self.metrics.committed.set(now.step)
        self._idle_since = time.perf_counter()
        self.metrics.seconds.labels("checkpoint").observe(time.perf_counter() - begin)

    # --- evaluation and the end

    def _evaluated(self, results: dict[str, float]) -> None:
        """Export and log an evaluation whose files are written."""
        self.metrics.evaluated(results)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in results.items() if name.startswith("pass@"))
        self.log.info("evaluation of version %d: %s", results["version"], shown)

    def _request_evaluation(self, version: int) -> None:
        if version == 0 and not self.config.evaluation.base and self.config.schedule.steps:
            return
        prompts, samples = self.run_data.eval_prompts, self.config.evaluation.samples
        self.retrying(lambda: self.evaluation.request(self.epoch, version, prompts, samples))

    def _await_evaluations(self) -> tuple[Order, list[str]]:
        """The order after the last step: idle until the pending evaluations are collected, then finish."""
        first_look = self._done_since is None
        self._done_since = self._done_since or time.monotonic()
        busy = self.evaluation.poll(self.epoch, EVAL_GROUPS_AT_THE_END, now=first_look)
        if not self.evaluation.pending:
            return "finish", []
        waited = time.monotonic() - self._done_since
        if waited > self.config.evaluation.deadline_seconds:
            self.log.error(
                "evaluation of version(s) %s not in after evaluation.deadline_seconds = %g: the run ends without it",
                sorted(self.evaluation.pending), self.config.evaluation.deadline_seconds,
            )  # fmt: skip
            return "finish", []
        self.phase("evaluating")
        if not busy:
            self.wait("evaluation groups", POLL_SECONDS)
        return "idle", []

    def _finish(self) -> None:
        """Export the weights as a Hugging Face model to <run>/model, with adapters merged, and the adapters alone to
        <run>/adapter; then finish the run in the broker."""
        self.phase("exporting")
        model = self.config.model
        path, first, dtype = self.config.run.path, self.ranks.first, compute_dtype(model)
        if self.progress.step:  # a run of no steps evaluates: its model is the one it was given
            export(path / "model", self.trainer.policy, model.path, dtype, first=first)
            if model.lora is not None:
                export_adapters(path / "adapter", self.trainer.policy, model.path, dtype, first=first)
        if first:
            self.retrying(lambda: self.broker.finish(self.epoch))
        self.ranks.barrier()
        self.finish(f"{self.progress.step} steps, version {self.progress.version}")
