"""The run's processes as Ray actors: create, start, see how they end, start again, stop, kill.

A unit is what is restarted together: one actor, one verifier, or all ranks of the learner (a rank's death ends its
collectives, so the gang starts again from the last checkpoint). Ray brings a dead process back (`max_restarts=-1`)
but never repeats the call that it died in (`max_task_retries=0`): whether and when it serves again is decided here,
by restarts.py.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from broker.errors import EX_UNAVAILABLE, SieveError
from deploy.config.settings import Share
from deploy.config.tree import Config
from deploy.launch.ray_host import Ended, Host
from deploy.launch.restarts import KILLED, Restarts
from deploy.launch.roles import Startable

GATHER_SECONDS = 5.0
"""After one rank ended, how long the others may take to end too: whoever was killed is the cause, not who noticed."""
log = logging.getLogger("sieve.launcher")
START_ATTEMPTS = 3
"""Of a local Ray: its own processes have 30 s, which no setting lengthens; a loaded machine can be slower."""
PLACE_SECONDS = 120.0
START_SECONDS = 120.0
"""For a Ray actor's process to answer, on a loaded machine or a cluster that starts a node."""


class RayUnavailable(SieveError):
    """Ray cannot be started here, or the cluster cannot be reached."""

    exit_code = EX_UNAVAILABLE


class Unplaceable(Exception):
    """The cluster lacks the resources; the message names what was asked for and what is there."""


@dataclass
class Unit:
    """One actor, one verifier or the learner's ranks; `label` is what a person sees."""

    role: Startable
    index: int
    label: str
    members: list[Any]
    restarts: Restarts
    running: dict[Any, Any] = field(default_factory=dict)
    """Pending `run` call → its member."""
    started: float = 0.0
    due: float | None = 0.0
    """Monotonic time of the next start; None while it runs or after it is done."""
    worked: bool = False
    """Whether it was seen beyond its set-up since its last start."""
    processes: list[int] = field(default_factory=list)
    done: bool = False
    group: PlacementGroup | None = None
    """What is reserved for the members together; given back when the unit is killed."""

    def start(self) -> None:
        """Call `run` on every member. Raises RayError when a process does not come up in time."""
        self.processes = ray.get([member.process.remote() for member in self.members], timeout=START_SECONDS)
        self.started, self.due, self.worked = time.monotonic(), None, False
        for member, environment in zip(self.members, self._environments(), strict=True):
            self.running[member.run.remote(environment)] = member

    def _environments(self) -> list[dict[str, str]]:
        """Each rank's coordinates; nothing for a single process, which is a world of one without them."""
        world = len(self.members)
        if self.role != "learner" or world == 1:
            return [{} for _ in self.members]
        # A port that is free now, on the machine of rank 0: each gang meets at a new one.
        host, port = ray.get(self.members[0].address.remote(), timeout=START_SECONDS)
        shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": host, "MASTER_PORT": str(port)}
        # Ray shows every process its own GPUs only, so the local index is always 0.
        return [{**shared, "RANK": str(rank), "LOCAL_RANK": "0"} for rank in range(world)]

    def ended(self) -> Ended | None:
        """How the unit ended, None while all of it runs. One ended member ends the others."""
        if not self.running:
            return None
        ready, _ = ray.wait(list(self.running), num_returns=1, timeout=0)
        if not ready:
            return None
        ready, pending = ray.wait(list(self.running), num_returns=len(self.running), timeout=GATHER_SECONDS)
        ends = [_end(call) for call in ready]
        if pending and all(end.code == 0 for end in ends):
            # Ranks finish together, but the last one may still be writing.
            return None
        for call in pending:
            ray.kill(self.running[call], no_restart=False)
        self.running.clear()
        killed = [end for end in ends if end.code == KILLED]
        return (killed or sorted(ends, key=lambda end: end.code == 0))[0]

    def refresh(self) -> None:
        """Give every member a fresh process: what failed inside may have left threads or half a model behind."""
        for member, process in zip(self.members, self.processes, strict=True):
            try:
                if ray.get(member.process.remote(), timeout=5.0) == process:
                    ray.kill(member, no_restart=False)
            except (RayActorError, GetTimeoutError):
                continue  # dead already: Ray is bringing it back

    def stop(self, reason: str) -> None:
        """Ask every member to drain."""
        for member in self.running.values():
            member.stop.remote(reason)

    def kill(self) -> None:
        """End every member for good, now."""
        self.running.clear()
        self.due = None
        for member in self.members:
            ray.kill(member, no_restart=True)
        if self.group is not None:
            remove_placement_group(self.group)
            self.group = None


def _end(call: Any) -> Ended:
    try:
        code, line = ray.get(call)
        return Ended(int(code), str(line))
    except RayTaskError as error:
        return Ended(70, f"unexpected {' '.join(str(error.cause).split())}")
    except RayError as error:
        return Ended(KILLED, _why(error))


def _why(error: RayError) -> str:
    """Ray's account of a death, as far as it is one line."""
    text = str(error)
    for sign, words in (
        ("SIGKILL", "killed (SIGKILL)"),
        ("OOM", "killed for memory"),
        ("SIGSEGV", "crashed (SIGSEGV)"),
    ):
        if sign in text:
            return words
    return "the process died"


def connect(config: Config) -> None:
    """Start Ray on this machine, or join the cluster at launch.address. Raises RayUnavailable."""
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            _connect(config)
            return
        except Exception as error:  # Ray raises Exception itself when its processes are late
            ray.shutdown()
            if config.launch.address is None and attempt < START_ATTEMPTS:
                log.warning("Ray did not start (%s), trying again", " ".join(str(error).split())[:300])
                continue
            raise RayUnavailable(
                f"Ray does not start on {config.launch.address or 'this machine'}: "
                f"{' '.join(str(error).split())[:300]}; check launch.address, free memory, disk space in /tmp and the "
                f"machine's load"
            ) from None


def _connect(config: Config) -> None:
    launch = config.launch
    quiet = {"log_to_driver": False, "logging_level": "error"}
    # Ray prints a paragraph into the terminal for every process that dies, which no option turns off. The launcher says
    # it in one line; the paragraph goes to its log. (A private name: ray is pinned to one minor release.)
    ray._private.worker.print_to_stdstream = _to_log
    if launch.address is not None:
        ray.init(address=launch.address, **quiet)
        return
    shares = launch.ranks * launch.learner.cpus + config.actor.replicas * launch.actor.cpus
    shares += sum(queue.replicas for queue in config.verifier.serve.values()) * launch.verifier.cpus
    ray.init(
        address="local",
        # The books are made to fit the run: on a small machine its processes share cores instead of never being placed.
        num_cpus=max(1, math.ceil(shares)),
        object_store_memory=launch.object_store_bytes,
        include_dashboard=launch.dashboard,
        **quiet,
    )


def _to_log(data: Mapping[str, Any], **_: Any) -> None:
    for line in data["lines"]:
        log.info("ray: %s", " ".join(str(line).split()))


def make_units(config: Config, tree: Mapping[str, Any], url: str) -> list[Unit]:
    """Every unit of the run, the learner first; nothing serves yet. Raises Unplaceable."""
    launch = config.launch
    units = [_learner(config, tree, url)]
    for index in range(config.actor.replicas):
        member = _member("actor", launch.actor, tree, url, index, (), launch.threads)
        units.append(Unit("actor", index, f"actor {index}", [member], Restarts(launch)))
    index = 0
    for name, queue in config.verifier.serve.items():
        for _ in range(queue.replicas):
            member = _member("verifier", launch.verifier, tree, url, index, (name,), launch.threads)
            units.append(Unit("verifier", index, f"verifier {index} ({name})", [member], Restarts(launch)))
            index += 1
    return units


def _learner(config: Config, tree: Mapping[str, Any], url: str) -> Unit:
    """All ranks, reserved together: half a gang would hold resources and wait for ever."""
    launch = config.launch
    bundle = {"CPU": launch.learner.cpus, "GPU": launch.learner.gpus}
    bundle = {name: amount for name, amount in bundle.items() if amount} or {"CPU": 0.001}
    group = placement_group([bundle] * launch.ranks, strategy="PACK")
    if not group.wait(PLACE_SECONDS):
        have = {name: amount for name, amount in ray.cluster_resources().items() if name in ("CPU", "GPU")}
        raise Unplaceable(
            f"launch.ranks = {launch.ranks} learner ranks of {bundle} do not fit the cluster, which has {have}; lower "
            f"launch.ranks or launch.learner, or add nodes"
        )
    members = [
        _member("learner", launch.learner, tree, url, rank, (), launch.threads, group) for rank in range(launch.ranks)
    ]
    label = "learner" if launch.ranks == 1 else f"learner ({launch.ranks} ranks)"
    return Unit("learner", 0, label, members, Restarts(launch), group=group)


def _member(
    role: Startable, share: Share, tree: Mapping[str, Any], url: str, index: int, names: Sequence[str], threads: int,
    group: PlacementGroup | None = None,
) -> Any:  # fmt: skip
    options: dict[str, Any] = {
        "num_cpus": share.cpus, "num_gpus": share.gpus, "max_restarts": -1, "max_task_retries": 0, "max_concurrency": 2,
    }  # fmt: skip
    if group is not None:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
    return ray.remote(Host).options(**options).remote(role, tree, index=index, url=url, names=names, threads=threads)
