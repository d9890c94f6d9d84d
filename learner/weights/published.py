"""What the learner knows about the version that the broker's pointer names: its number, its steps, whether it is whole.

Decides when the next one is due. A learner that took the run over may be behind the published version, because that was
never checkpointed; it publishes again once it is past it, or level with it if its files are damaged.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from broker.errors import WeightsError
from broker.queue.learner_client import LearnerClient
from broker.queue.state import Epoch, VersionName
from broker.weights.store import VersionStore
from learner.model.checkpoint import CheckpointName


class PublishedWeights:
    """The published version, as this learner found it or moved it."""

    def __init__(self, epoch: Epoch) -> None:
        self.version, self.step = epoch.version, epoch.published_step
        self.name: VersionName | None = None
        """Its files; None while they are unknown or unusable."""
        self._used = epoch.used_version
        self._unusable = False
        self._own = False

    @property
    def next_number(self) -> int:
        """The number for the next version: no number before it was ever given to weights."""
        return self._used + 1

    def check(
        self, broker: LearnerClient, store: VersionStore, loaded: CheckpointName | None, log: logging.Logger
    ) -> None:
        """Read the published version's files; where they are not what was named, the next one is due early.

        `loaded`: the checkpoint that the learner's weights come from, None for the base model.
        """
        named = broker.published(self.version)
        try:
            if named is None:
                raise WeightsError(f"the broker does not know the files of version {self.version}")
            # A checkpoint and a version of one step by one learner hold the same weights, and so does the base.
            same = loaded is not None and (loaded.step, loaded.epoch) == (named.step, named.name.epoch)
            self._own = same or (loaded is None and named.step == 0)
            found = store.fetch(named.name)
            if found.identity != named.identity:
                raise WeightsError(f"{found.directory} has other files than were published")
            self.name = named.name
        except WeightsError as error:
            self._unusable = True
            log.warning("%s; the weights are published again at step %d", error, self.step)

    def due(self, step: int, every: int, *, last: bool) -> bool:
        """Whether weights of `step` steps are to be published now, with a version every `every` steps.

        `last`: they are the run's last, so that the last version must be exactly these, also where a learner that died
        had published the last step.
        """
        if step < self.step:
            return False
        return step - self.step >= (1 if last else every) or self._unusable or (last and not self._own)

    def holds(self, step: int) -> bool:
        """Whether the learner's weights, of `step` steps, are those of the published version exactly."""
        return self._own and step == self.step

    def moved(self, name: VersionName, step: int) -> None:
        """The pointer names the weights of this process."""
        self.version, self.step, self.name, self._used = name.number, step, name, name.number
        self._own, self._unusable = True, False


def versions_to_keep(broker: LearnerClient, newest: int, evaluated: Collection[int]) -> set[VersionName]:
    """Of the versions that were published: the `newest` (a count), and those that an evaluation still samples from or a
    live actor was reading at its last heartbeat.

    An actor whose version is deleted all the same starts again from the newest one.
    """
    lease = broker.settings.lease_seconds
    reading = {
        int(heartbeat.values["fetching"])
        for heartbeat in broker.services()
        if heartbeat.alive(lease) and "fetching" in heartbeat.values
    }
    named = broker.versions()
    wanted = {*sorted(named)[-newest:], *evaluated, *reading}
    return {named[number].name for number in wanted if number in named}
