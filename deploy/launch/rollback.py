"""`sieve resume --from`: takes back the steps after an earlier committed checkpoint, while no service is at work."""

from __future__ import annotations

import os
import secrets

from broker.errors import RunConflict
from broker.queue.heartbeat import Heartbeat
from broker.queue.learner_client import LearnerClient
from deploy.config.tree import Config
from deploy.observe.status import open_broker
from deploy.rundir.lock import RunDirectory


def checkpoints(config: Config) -> dict[int, str]:
    """Steps that the run can go back to and the checkpoint of each; 0 is the base model, which needs none."""
    with open_broker(config, LearnerClient) as broker:
        return {0: "-", **broker.checkpoints()}


def roll_back(config: Config, step: int) -> str:
    """Go back to the committed checkpoint of `step`; returns what was done, for the terminal.

    The checkpoint is read and compared with its manifest before anything changes. Raises RunDirectoryError, RunBusy
    while a learner is alive, RunConflict without such a checkpoint, CheckpointCorrupt.
    """
    with RunDirectory(config, resume=True, fresh=False), open_broker(config, LearnerClient) as broker:
        spec = broker.run_spec()
        kept = broker.checkpoints()
        if spec is None or (step and step not in kept):
            there = ", ".join(map(str, [0, *kept])) if spec else "none: no learner has opened the run"
            raise RunConflict(f"step {step} is no committed checkpoint that is kept; these are: {there}")
        z: dict[int, bytes] = {}
        if step:
            from learner.model.checkpoint import verify

            _, fingerprint, z = verify(config.run.path / "checkpoints" / kept[step])
            if fingerprint != spec.fingerprint:
                raise RunConflict(f"checkpoint {kept[step]} belongs to another run; restore the right one from a copy")
        id = f"rollback-{os.getpid()}-{secrets.token_hex(3)}"
        epoch = broker.begin(id)
        try:
            reply = broker.rollback(epoch, step, z)
        finally:
            broker.heartbeat(Heartbeat(id=id, role="launcher", phase="stopped"))
    return (
        f"back at step {step} of {epoch.committed_step}: {reply.untrained} groups will be sampled and trained again, "
        f"{reply.discarded} in work are discarded"
    )
