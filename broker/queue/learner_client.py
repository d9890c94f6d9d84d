"""The learner's side of the protocol: begin and open the run, lease groups, publish, commit, evaluate, finish.

What a learner writes outside Redis (checkpoints, versions, records, exports) has its epoch in its name. A file counts
from the moment at which a fenced script names it: `commit` the checkpoint, `publish` the version and its hash, `finish`
the export. So whatever a replaced learner still writes, under whatever delay, is in files that nobody asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from broker.errors import BrokerError, RunConflict
from broker.queue.connection import RunConnection
from broker.queue.portions import chunks
from broker.queue.prompt_order import prompt_of
from broker.queue.state import CommitReply, Epoch, Group, Member, RollbackReply, RunSpec
from broker.queue.wire import Completion, Prompt, Verdict, pack, unpack


class LearnerClient(RunConnection):
    """A learner's connection to the run. Methods that take an epoch raise Fenced when it is not the newest."""

    # --- the run

    def check_run(self, fingerprint: str) -> RunSpec | None:
        """The specification of the run as it is in Redis, None when it was never opened; changes nothing.

        Raises:
            RunConflict: a run of this name was opened with another base model, other prompts, seed or sampling, or
                was written with another schema.
        """
        known = self.run_spec(fresh=True)
        if known is not None and known.fingerprint != fingerprint:
            raise RunConflict(
                f"run {self.run.name!r} is in Redis with other settings (fingerprint {known.fingerprint[:12]}, now "
                f"{fingerprint[:12]}): model, prompts, seed and sampling are fixed within a run; choose another "
                f"run.name"
            )
        return known

    def begin(self, learner: str, newest_epoch: int = 0) -> Epoch:
        """Take the run over: every earlier learner is fenced from now on. The reply names the checkpoint to load.

        Groups leased for steps after the committed one stay leased for the same steps. `newest_epoch`: the highest
        epoch in the names of the run's files, so that no name is given twice even if Redis has lost its last writes.

        Raises:
            RunBusy: another learner's heartbeat is younger than broker.lease_seconds.
        """
        reply = self.script(
            "begin", learner=learner, lease_seconds=self.settings.lease_seconds, newest_epoch=newest_epoch
        )
        number, committed, checkpoint, version, used, published, leased, opened = reply
        return Epoch(number, committed, checkpoint.decode(), version, used, published, leased, bool(opened))

    def open_run(self, epoch: Epoch, spec: RunSpec, train: Sequence[Prompt], eval_prompts: Sequence[Prompt]) -> None:
        """Write the run's prompts and its specification; with the same fingerprint again only the schedule changes.

        Raises:
            RunConflict: as `check_run`.
        """
        if self.check_run(spec.fingerprint) is None:
            for lane, prompts in (("train", train), ("eval", eval_prompts)):
                for batch in chunks(prompts):
                    records = [{"index": prompt.index, "body": pack(prompt)} for prompt in batch]
                    self.script("open", epoch=epoch.number, spec="", lane=lane, prompts=records)
        self.script("open", epoch=epoch.number, spec=spec.to_json(), lane="", prompts=())
        self._spec = spec

    def current_epoch(self) -> int:
        """Number of the newest epoch: a learner whose own is smaller has been replaced."""
        return int(self._state("epoch") or 0)

    def finish(self, epoch: Epoch) -> None:
        """Mark the run as finished: actors and verifiers end when they next ask. Safe to repeat."""
        self.script("finish", epoch=epoch.number)

    # --- groups

    def lease(self, epoch: Epoch, step: int, groups: int) -> list[str] | None:
        """`groups` finished groups for optimiser step `step`, oldest version first; None while too few are ready.

        The same step gets the same groups again.
        """
        spec = self._opened()
        group_ids = self.script(
            "lease",
            epoch=epoch.number,
            step=step,
            groups=groups,
            groups_per_step=spec.groups_per_step,
            groups_per_version=spec.groups_per_version,
            max_staleness=spec.max_staleness,
        )
        return [group_id.decode() for group_id in group_ids] or None

    def groups(self, group_ids: Sequence[str]) -> list[Group]:
        """The contents of finished groups, in the order asked for.

        Raises:
            BrokerError: a group does not exist any more.
        """
        spec = self._opened()
        found: list[Group] = []
        for batch in chunks(group_ids):

            def read(batch: Sequence[str] = batch) -> list[dict[bytes, bytes]]:
                pipeline = self._redis.pipeline(transaction=False)
                for group_id in batch:
                    pipeline.hgetall(self._key(f"group:{group_id}"))
                return cast(list[dict[bytes, bytes]], pipeline.execute())

            for group_id, fields in zip(batch, self._retry(read, "fetching groups"), strict=True):
                if not fields:
                    raise BrokerError(f"group {group_id} is gone: another learner has committed or dropped it")
                found.append(_group(group_id, fields, prompt_of(group_id, spec.seed, spec.train_prompts)))
        return found

    def store_base(self, scores: Mapping[tuple[str, int], bytes]) -> None:
        """Store base log-probs with their completions, so that each is scored once. Safe to repeat.

        `scores`: (group id, index) → float32 little-endian, one number per token.
        """
        for batch in chunks(list(scores.items())):
            records = [{"group_id": group_id, "idx": idx, "data": data} for (group_id, idx), data in batch]
            self.script("store_base", scores=records)

    def commit(
        self, epoch: Epoch, step: int, checkpoint: str, z: Mapping[int, bytes] | None = None, *, keep: int = 1
    ) -> CommitReply:
        """Settle all steps up to `step`, which the durable `checkpoint` holds: it is the one that the next learner
        loads, the steps' groups become tombstones, and the Z statistics advance with them. Safe to repeat.

        `z`: train prompt → its packed Z statistics as of this step. `keep`: committed checkpoints that a rollback can
        go back to, this one included; what else it needs is kept with them.
        """
        records = [{"prompt": prompt, "packed": data} for prompt, data in (z or {}).items()]
        reply = self.script(
            "commit", epoch=epoch.number, step=step, checkpoint=checkpoint, keep=keep, statistics=records
        )
        return CommitReply(*reply)

    def rollback(self, epoch: Epoch, step: int, z: Mapping[int, bytes]) -> RollbackReply:
        """Go back to the committed checkpoint of `step`, or with 0 to the base model. Every group of a later step, and
        every group that is not committed, will be sampled and trained again; versions published since stay in the
        history, and none is sampled from until the weights that the run went back to are published.

        `z`: the Z statistics in that checkpoint.

        Raises:
            RunConflict: no such checkpoint is kept.
        """
        spec = self._opened()
        records = [{"prompt": prompt, "packed": data} for prompt, data in z.items()]
        reply = self.script(
            "rollback",
            epoch=epoch.number,
            step=step,
            groups_per_step=spec.groups_per_step,
            train_prompts=spec.train_prompts,
            statistics=records,
        )
        return RollbackReply(*reply)

    # --- versions

    def publish(
        self, epoch: Epoch, version: int, step: int, identity: str = "", *, admitted: int | None = None
    ) -> None:
        """Move the version pointer to `version`, whose files are complete and hold `step` optimiser steps. From here on
        the number means this epoch's files, whose `Manifest.identity` is `identity`. Safe to repeat.

        `admitted`: the staleness that admission aims at from now on (`admission.tightened`); None leaves it.

        Raises:
            BrokerError: this version or a newer one is already published, or the published one contains more steps.
        """
        moved = self.script(
            "publish",
            epoch=epoch.number,
            version=version,
            step=step,
            identity=identity,
            groups_per_step=self._opened().groups_per_step,
            admitted=admitted,
        )
        if not moved:
            raise BrokerError(f"version {version} is not newer than the published version {self.version()}")

    def admitted(self) -> int:
        """The staleness that admission aims at now, never more than schedule.max_staleness."""
        value, bound = self._state("admitted"), self._opened().max_staleness
        return bound if value is None else min(bound, int(value))

    # --- evaluations

    def request_eval(self, epoch: Epoch, version: int, prompts: int, n: int) -> None:
        """Issue tickets for `n` completions of each of the first `prompts` eval prompts, pinned to `version`.

        Safe to repeat.
        """
        self.script("request_eval", epoch=epoch.number, version=version, prompts=prompts, n=n)

    def eval_open(self) -> dict[int, int]:
        """Evaluations requested and not yet done: version → groups still missing."""
        raw = cast(dict[bytes, bytes], self._retry(lambda: self._redis.hgetall(self._key("evals")), "reading evals"))
        waiting = {int(version): int(groups) for version, groups in raw.items() if groups != b"done"}
        return {version: groups - len(self.eval_ready(version)) for version, groups in sorted(waiting.items())}

    def eval_ready(self, version: int) -> list[str]:
        """Ids of the finished groups of an evaluation, in the order of their prompts."""
        found = self._retry(lambda: self._redis.smembers(self._key(f"ready:eval:{version}")), "reading an evaluation")
        group_ids = [group_id.decode() for group_id in cast(set[bytes], found)]
        return sorted(group_ids, key=lambda group_id: int(group_id.partition(":")[2]))

    def eval_done(self, epoch: Epoch, version: int) -> None:
        """Free the groups of an evaluation whose results are on disk. Safe to repeat."""
        self.script("eval_done", epoch=epoch.number, version=version)


def _group(group_id: str, fields: dict[bytes, bytes], prompt: int) -> Group:
    n = int(fields[b"n"])
    members = []
    for i in range(n):
        verdict = fields.get(b"j%d" % i)
        if verdict is not None:
            base = fields.get(b"b%d" % i)
            members.append(
                Member(
                    unpack(Completion, fields[b"c%d" % i]),
                    unpack(Verdict, verdict),
                    None if base is None else np.frombuffer(base, "<f4"),
                )
            )
    return Group(
        group_id=group_id,
        prompt=prompt,
        n=n,
        version=int(fields[b"version"]),
        oldest=int(fields.get(b"oldest", fields[b"version"])),
        closed_short=int(fields.get(b"short", 0)),
        ready_at=float(fields.get(b"ready_at", 0)),
        members=members,
    )
