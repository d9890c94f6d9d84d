"""The learner service: take the run, then lease → train → publish → checkpoint and commit, until the steps are done.

Rank 0 decides what comes next and all ranks carry it out, so that their collectives match. Only rank 0 calls the
broker, except that every rank fetches its groups. A kill or a pause at any moment is harmless because

- nothing is loaded or written before the run is this learner's, and then only what the broker names is loaded;
- every file has the epoch in its name, and counts once a fenced script names it: a checkpoint with the commit of the
  groups whose gradient it contains, a version with its hash when the pointer moves;
- a restart goes on from the committed checkpoint and does the steps after it again, with the same groups. The published
  version stays until the learner is past it: a version number never means two sets of weights, and no version has fewer
  steps than the one before it.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from broker.errors import Fenced, SieveError
from broker.queue import admission
from broker.queue.heartbeat import Role
from broker.queue.learner_client import LearnerClient
from broker.queue.state import Epoch, VersionName
from broker.queue.wire import float32
from broker.runtime.service import UNREACHABLE, Service
from broker.weights.broadcast import BroadcastCoordinator
from broker.weights.factory import location_of, open_store
from learner.batch.samples import fetch
from learner.epoch_files import Journal, forget, own, show
from learner.evaluation.collector import EvaluationCollector
from learner.metrics import LearnerMetrics, PartitionSummary, step_record, whole_step
from learner.model.checkpoint import CheckpointCorrupt, CheckpointName, Checkpoints, Progress
from learner.objective.sequences import Sequences
from learner.ranks import Ranks
from learner.settings import LearnerConfig
from learner.start import Run, build_trainer, compute_dtype, read_run
from learner.step_record import StepRecord
from learner.takeover import take_run, ways_back
from learner.weights.broadcast import Broadcaster, BroadcastMetrics, open_broadcaster
from learner.weights.canary import CanaryWatch
from learner.weights.publish import export, export_adapters, publish_weights
from learner.weights.published import PublishedWeights, versions_to_keep

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
        self.run_data: Run = read_run(self.config)
        self.trainer = build_trainer(self.config, self.ranks)
        path = self.config.run.path
        self.weights = open_store(self.config.weights, location_of(self.config.run))
        self.checkpoints = Checkpoints(path / "checkpoints", self.ranks)
        self.epoch: Epoch = self.ranks.tell(self._take_run() if self.ranks.first else None)
        with self._unless_replaced():
            self._go_on_from_commit()
            self.canary = CanaryWatch(self.config, self.ranks, self.broker, self.run_data.prompts)
            self.z_summary = PartitionSummary(self.trainer.partition)
            if self.ranks.first:
                self._open_files(path)
            self._published = PublishedWeights(self.epoch)
            self._publish_at_start()
        self._idle_since = time.perf_counter()

    def _open_broadcaster(self) -> Broadcaster | None:
        """None with `weights.broadcast: none`. Raises BroadcastUnavailable."""
        coordinator, metrics = BroadcastCoordinator(self.broker), BroadcastMetrics(self.registry)
        return open_broadcaster(self.config.weights, coordinator, metrics, self.log, self.wait)

    def _take_run(self) -> Epoch:
        written = [name.epoch for name in self.checkpoints.names()] + [name.epoch for name in self.weights.versions()]
        wait = lambda: self.wait("the previous learner's lease", 0.25)  # noqa: E731
        return take_run(self.broker, self.config, self.run_data, self.id, max(written, default=0), wait, self.log)

    def _go_on_from_commit(self) -> None:
        """Load the committed checkpoint, the only one that counts. Collective; raises CheckpointCorrupt."""
        epoch, fingerprint = self.epoch, self.run_data.fingerprint
        self.progress = Progress(fingerprint=fingerprint)
        if epoch.committed_step:
            name = CheckpointName.parse(epoch.checkpoint)
            if name is None or name.step != epoch.committed_step:
                raise CheckpointCorrupt(
                    f"the broker names {epoch.checkpoint!r:.80} as the checkpoint of step {epoch.committed_step}: its "
                    f"data are damaged; go back with {ways_back(self.broker, epoch.committed_step)}"
                )
            remedy = f"Restore it from a copy, or go back with {ways_back(self.broker, name.step)}"
            self.progress = self.checkpoints.load(
                name, self.trainer.policy, self.trainer.optimizer, fingerprint=fingerprint, remedy=remedy
            )
            self.trainer.partition.load(self.progress.z)
        self.committed = self.progress.step
        self.log.info(
            "epoch %d: step %d, version %d of step %d, %d groups leased",
            epoch.number, self.committed, epoch.version, epoch.published_step, epoch.leased_groups,
        )  # fmt: skip
        self.metrics.of_field["step"].set(self.committed)
        self.metrics.committed.set(self.committed)

    def _open_files(self, path: Path) -> None:
        """Open what only rank 0 writes."""
        epoch = self.epoch
        self.journal = Journal(
            path / "metrics.jsonl", epoch.number, "step", lambda line: int(line["step"]) <= epoch.committed_step
        )
        self.evaluation = EvaluationCollector(self.broker, epoch, path, self._evaluated)
        self.broadcaster = self._open_broadcaster()
        self._admitted = self.broker.admitted()
        self._sweep_checkpoints()

    def _publish_at_start(self) -> None:
        """Make sure that there is a version to sample from."""
        known = self.epoch
        if not known.opened:
            self._publish()
            return
        self.metrics.version.set(known.version)
        if self.ranks.first:
            loaded = CheckpointName.parse(known.checkpoint)
            self._published.check(self.broker, self.weights, loaded, self.log)
            # The former learner may have died between publishing a version and this.
            there = self.weights.versions()
            for version, named in self.broker.versions().items():
                if version in (0, known.version) and named.name in there:
                    self._evaluate_if_due(version, named.step)

    # --- the loop

    def step(self) -> None:
        """Carry out rank 0's next order on all ranks."""
        with self._unless_replaced():
            self._carry_out(*self._agree())

    @contextmanager
    def _unless_replaced(self) -> Iterator[None]:
        """Context of work that fails as it must when another learner has taken the run over: groups are gone, files
        are swept. The cause is then named instead. Raises Fenced."""
        try:
            yield
        except (Fenced, *UNREACHABLE):
            raise
        except Exception as error:
            with suppress(*UNREACHABLE):
                newest = self.broker.current_epoch()
                if newest > self.epoch.number:
                    raise Fenced(
                        f"a newer learner (epoch {newest}) has taken this run over from epoch {self.epoch.number}; "
                        f"this one must end ({' '.join(str(error).split())[:200]})"
                    ) from error
            raise

    def _carry_out(self, order: Order, group_ids: list[str]) -> None:
        if order == "train":
            self._train(group_ids)
        elif order == "publish":
            self._publish()
        elif order == "checkpoint":
            self._checkpoint()
        elif order == "finish":
            self._finish()
        elif order == "stop":
            current = self.ranks.tell(self._published.holds(self.progress.step) if self.ranks.first else None)
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
        if self._published.due(now.step, schedule.publish_every, last=last):
            return "publish", []
        self._write_line()
        if now.step - self.committed >= (1 if last else schedule.checkpoint_every):
            return "checkpoint", []
        if last:
            return self._await_evaluations()
        busy = self.evaluation.poll(EVAL_GROUPS)
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
        if self.ranks.first:
            if self.broadcaster is not None:
                self.broadcaster.close()
            self.journal.close()
            self.evaluation.close()
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
            self._staleness_of(before.step),
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
        report = self.trainer.step(samples, step=step, progress=progress, scored=scored)
        # From here on the step is done: whatever fails below must not repeat it.
        self.progress = replace(before, step=step)
        sequences = whole_step(self.ranks, report)
        if self.ranks.first:
            record = step_record(
                sequences, report, self.trainer.objective, step=step, version=self._published.version,
                progress=progress, current=self._published.holds(before.step),
            )  # fmt: skip
            self.canary.trained(samples, record, self._published.version)
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

    def _staleness_of(self, step: int) -> Callable[[int], int]:
        """Staleness, by version, of tokens that are trained on from weights of `step` steps. Collective."""
        steps = self.ranks.tell(
            sorted((number, one.step) for number, one in self.broker.versions().items()) if self.ranks.first else None
        )
        every = self.config.schedule.publish_every

        def staleness(version: int) -> int:
            # A version that was only sent to actors, by a learner that died, has at least the steps of the one before.
            at = bisect_right(steps, version, key=lambda entry: entry[0])
            return admission.staleness(step, steps[at - 1][1] if at else 0, every)

        return staleness

    def _publish(self) -> None:
        """Publish the weights as they are under a new number."""
        self.phase("publishing")
        begin = time.perf_counter()
        now, model, published = self.progress, self.config.model, self._published
        name = VersionName(published.next_number, self.epoch.number)
        first, dtype = self.ranks.first, compute_dtype(model)
        identity = publish_weights(
            self.weights, name, self.trainer.policy, model.path, dtype, first=first, step=now.step,
            base=published.name if self.config.weights.delta else None,
            meanwhile=self._send(name.number) if first else None,
        )  # fmt: skip
        canary = self.canary.canary(name.number, self.trainer.policy)
        if self.ranks.first:
            kept = self._versions_to_keep()
            self.retrying(lambda: self.canary.put(canary, self.epoch, [one.number for one in kept]))
            target, bound = self.config.schedule.ess_target, self.config.schedule.max_staleness
            self._admitted = admission.tightened(self._admitted, bound=bound, ess=self._ess, target=target)
            self.retrying(
                lambda: self.broker.publish(self.epoch, name.number, now.step, identity, admitted=self._admitted)
            )
            self._evaluate_if_due(name.number, now.step)
            self.weights.keep(self._versions_to_keep(), self.epoch.number)
        published.moved(name, now.step)
        self.metrics.version.set(name.number)
        self._write_line(publish=time.perf_counter() - begin)

    def _versions_to_keep(self) -> set[VersionName]:
        count = self.config.learner.keep_versions + self.config.schedule.forced_staleness
        return self.retrying(lambda: versions_to_keep(self.broker, count, self.evaluation.pending))

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
            self.journal.append(record.plain())
            self.metrics.observe(record, sequences)
            self.values = {
                "step": record.step, "steps": self.config.schedule.steps, "version": self._published.version,
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
        name = self.checkpoints.save(now, self.epoch.number, self.trainer.policy, self.trainer.optimizer)
        if self.ranks.first:
            self.journal.sync()
            keep = self.config.learner.keep_checkpoints
            reply = self.retrying(lambda: self.broker.commit(self.epoch, now.step, str(name), now.z, keep=keep))
            if reply.duplicates:
                self.log.error("step %d: %d groups had been committed before", now.step, reply.duplicates)
            self._sweep_checkpoints()
        self.committed = now.step
        self.metrics.committed.set(now.step)
        self._idle_since = time.perf_counter()
        self.metrics.seconds.labels("checkpoint").observe(time.perf_counter() - begin)

    def _sweep_checkpoints(self) -> None:
        """Delete the checkpoints that no commit named, and those that are not kept any more (rank 0)."""
        kept = [CheckpointName.parse(name) for name in self.retrying(self.broker.checkpoints).values()]
        self.checkpoints.keep([name for name in kept if name is not None], self.epoch.number)

    # --- evaluation and the end

    def _evaluated(self, results: dict[str, float]) -> None:
        """Export and log an evaluation whose files are written."""
        self.metrics.evaluated(results)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in results.items() if name.startswith("pass@"))
        self.log.info("evaluation of version %d: %s", results["version"], shown)

    def _evaluate_if_due(self, version: int, step: int) -> None:
        """Request the evaluation of a version of `step` steps if it is one of those that are evaluated; safe to
        repeat."""
        schedule, evaluation = self.config.schedule, self.config.evaluation
        last = step >= schedule.steps
        if version == 0 and not evaluation.base and schedule.steps:
            return
        if last or version == 0 or (evaluation.every and version % evaluation.every == 0):
            prompts = self.run_data.eval_prompts
            self.retrying(lambda: self.evaluation.request(version, prompts, evaluation.samples))

    def _await_evaluations(self) -> tuple[Order, list[str]]:
        """The order after the last step: idle until the pending evaluations are collected, then finish."""
        first_look = self._done_since is None
        self._done_since = self._done_since or time.monotonic()
        busy = self.evaluation.poll(EVAL_GROUPS_AT_THE_END, now=first_look)
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
        <run>/adapter; finish the run in the broker, and then show the exports under these names."""
        self.phase("exporting")
        model, number = self.config.model, self.epoch.number
        path, first, dtype = self.config.run.path, self.ranks.first, compute_dtype(model)
        shown = []
        if self.progress.step:  # a run of no steps evaluates: its model is the one it was given
            shown.append(path / "model")
            export(own(shown[-1], number), self.trainer.policy, model.path, dtype, first=first)
            if model.lora is not None:
                shown.append(path / "adapter")
                export_adapters(own(shown[-1], number), self.trainer.policy, model.path, dtype, first=first)
        if first:
            self.retrying(lambda: self.broker.finish(self.epoch))
            for place in shown:
                show(place)
                forget(place, number)
        self.ranks.barrier()
        self.finish(f"{self.progress.step} steps, version {self._published.version}")
