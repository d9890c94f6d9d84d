"""Taking a run over: who may, what is checked before anything is changed, and what is recorded about it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from broker.errors import RunBusy, RunConflict
from broker.queue.learner_client import LearnerClient
from broker.queue.state import Epoch
from learner.epoch_files import Journal
from learner.resumption import without_effect
from learner.settings import LearnerConfig
from learner.start import Run, changed_settings


def take_run(
    broker: LearnerClient,
    config: LearnerConfig,
    run: Run,
    learner: str,
    newest_epoch: int,
    wait: Callable[[], bool],
    log: logging.Logger,
) -> Epoch:
    """Take the run, waiting for the lease of a learner that has just died, and open it with this configuration.

    Args:
        learner: id of the service.
        newest_epoch: the highest epoch in the names of the run's files.
        wait: waits a moment for the lease; True when the service is asked to stop.

    What changed in the settings goes into changes.jsonl with the step from which on it holds. A learner that is refused
    has changed nothing of the run. Raises RunBusy, RunConflict.
    """
    name = config.run.name
    changed_settings(broker.check_run(run.fingerprint), run.spec, name)
    if newest_epoch and not broker.current_epoch():
        raise RunConflict(
            f"{config.run.path} holds checkpoints or versions of epoch {newest_epoch}, but the broker knows nothing of "
            f"this run: its data are gone, or broker.url names another server. Restore them, or start anew with `sieve "
            f"run CONFIG --fresh` or another run.name"
        )
    deadline = time.monotonic() + 2 * config.broker.lease_seconds
    while True:
        try:
            epoch = broker.begin(learner, newest_epoch)
            break
        except RunBusy:
            if time.monotonic() > deadline or wait():
                raise
    known = broker.check_run(run.fingerprint)  # a learner that waited may find another schedule than before
    found = changed_settings(known, run.spec, name)
    done = max(epoch.committed_step, epoch.published_step)
    if known is not None and run.spec.steps < done:
        raise RunConflict(
            f"schedule.steps = {run.spec.steps}, but run {name!r} has done {done} steps: set it to at least that"
        )
    if run.spec.steps == epoch.committed_step and (idle := without_effect(found)):
        raise RunConflict(
            f"run {name!r} is finished at step {done}, so this would change nothing: {idle[0]}; undo the change, or "
            f"raise schedule.steps"
        )
    broker.open_run(epoch, run.spec, run.train, run.held_out)
    if found:
        record = Journal(config.run.path / "changes.jsonl", epoch.number, "step", lambda line: True)
        for change in found:
            now = {"step": epoch.committed_step, "time": time.time(), "epoch": epoch.number}
            record.append(now | {"key": change.key, "was": change.was, "now": change.now})
            log.info("from step %d on: %s", epoch.committed_step, change)
        record.sync()
        record.close()
    return epoch


def ways_back(broker: LearnerClient, step: int) -> str:
    """The commands that go back to a checkpoint before `step`."""
    others = [other for other in broker.checkpoints() if other < step]
    return " or ".join(f"`sieve resume CONFIG --from {other}`" for other in [*reversed(others), 0])
