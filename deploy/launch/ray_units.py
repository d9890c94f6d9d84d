"""The processes of a run as Ray actors, in units: created, started, restarted, stopped and killed.

A unit is what is restarted together: one actor, one verifier, or all ranks of the learner, whose collectives break
when one rank dies, so that all of them start again from the last checkpoint. Ray brings a dead process back
(`max_restarts=-1`) but does not repeat the call that it died in (`max_task_retries=0`): whether and when a unit serves
again is decided by the launcher with restarts.py.
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
from ray.job_config import JobConfig
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from broker.errors import EX_UNAVAILABLE, SieveError
from deploy.config import search_path
from deploy.config.settings import Share
from deploy.config.tree import Config
from deploy.launch.ray_host import Ended, Host
from deploy.launch.ray_session import make_private
from deploy.launch.restarts import KILLED, Restarts
from deploy.launch.roles import Startable

GATHER_SECONDS = 5.0
"""How long the other ranks may take to end after the first: only then is it known which one was killed, the cause, and
which ones merely lost their connection to it."""
log = logging.getLogger("sieve.launcher")
START_ATTEMPTS = 3
"""How often a local Ray is tried: its processes have 30 s to start, which no setting extends, and a loaded machine can
take longer."""
PLACE_SECONDS = 120.0
"""Deadline for the learner's resources."""
START_SECONDS = 120.0
"""Deadline for a Ray actor's process to answer: the machine may be loaded, or the cluster may have to add a node."""


class RayUnavailable(SieveError):
    """Ray cannot be started here, or the cluster cannot be reached."""

    exit_code = EX_UNAVAILABLE


class Job(JobConfig):  # type: ignore[misc]  # ray has no types
    """A job whose workers find modules as the launcher does.

    Ray would put the launcher's working directory first on their path, where a folder of the user's own called `actor`
    or `deploy` hides the installed package. It does not where the job has a working directory of its own. (A private
    name: ray is pinned to one minor release.)
    """

    def _runtime_env_has_working_dir(self) -> bool:
        return True


class Unplaceable(Exception):
    """The cluster lacks the resources; the message names what is needed and what is there."""


@dataclass
class Unit:
    """One actor, one verifier, or all ranks of the learner; `label` is its name in messages."""

    role: Startable
    index: int
    label: str
    members: list[Any]
    restarts: Restarts
    running: dict[Any, Any] = field(default_factory=dict)
    """Pending `run` call → its member."""
    started: float = 0.0
    due: float | None = 0.0
    """Monotonic time of the next start; None while it runs and after it is done."""
    worked: bool = False
    """Whether it has got past its set-up since its last start."""
    processes: list[int] = field(default_factory=list)
    """Process ids of the members since the last start."""
    done: bool = False
    """Whether it ended and will not be started again."""
    group: PlacementGroup | None = None
    """The resources reserved for all members together; returned when the unit is killed."""

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
        # A new port, free now, on the machine of rank 0 for each start: the old one may still be in use.
        host, port = ray.get(self.members[0].address.remote(), timeout=START_SECONDS)
        shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": host, "MASTER_PORT": str(port)}
        # Ray shows every process its own GPUs only, so the local index is always 0.
        return [{**shared, "RANK": str(rank), "LOCAL_RANK": "0"} for rank in range(world)]

    def ended(self) -> Ended | None:
        """The end of the unit, or None while all members run. When one member has failed, the others are killed."""
        if not self.running:
            return None
        ready, _ = ray.wait(list(self.running), num_returns=1, timeout=0)
        if not ready:
            return None
        ready, pending = ray.wait(list(self.running), num_returns=len(self.running), timeout=GATHER_SECONDS)
        ends = [_end(call) for call in ready]
        if pending and all(end.code == 0 for end in ends):
            return None  # the ranks finish together, but one may still be writing
        for call in pending:
            ray.kill(self.running[call], no_restart=False)
        self.running.clear()
        killed = [end for end in ends if end.code == KILLED]
        return (killed or sorted(ends, key=lambda end: end.code == 0))[0]

    def refresh(self) -> None:
        """Give every member a new process: a failed service may have left threads or half a model behind."""
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
        """Kill every member and return its resources."""
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
    """Why a process died, from Ray's error, which is a long text."""
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
    quiet = {"log_to_driver": False, "logging_level": "error", "job_config": Job()}
    # Ray prints a paragraph to the terminal for every process that dies, and has no option against it. The launcher
    # prints one line; the paragraph goes to its log. (A private name: ray is pinned to one minor release.)
    ray._private.worker.print_to_stdstream = _to_log
    if launch.address is not None:
        ray.init(address=launch.address, **quiet)
        return
    shares = launch.ranks * launch.learner.cpus + config.actor.replicas * launch.actor.cpus
    shares += sum(queue.replicas for queue in config.verifier.serve.values()) * launch.verifier.cpus
    ray.init(
        address="local",
        # As many as the run reserves: on a small machine its processes then share cores instead of never being placed.
        num_cpus=max(1, math.ceil(shares)),
        object_store_memory=launch.object_store_bytes,
        include_dashboard=launch.dashboard,
        _temp_dir=str(make_private()),
        **quiet,
    )


def _to_log(data: Mapping[str, Any], **_: Any) -> None:
    for line in data["lines"]:
        log.info("ray: %s", " ".join(str(line).split()))


def make_units(config: Config, tree: Mapping[str, Any], url: str) -> list[Unit]:
    """All units of the run, the learner first; none is started yet. Raises Unplaceable."""
    launch = config.launch
    units = [_learner(config, tree, url)]
    for index in range(config.actor.replicas):
        member = _member("actor", launch.actor, tree, url, index, (), launch.threads)
        units.append(Unit("actor", index, f"actor {index}", [member], Restarts(launch)))
    index = 0
    for name, queue in config.verifier.serve.items():
        for _ in range(queue.replicas):
            member = _member("verifier", launch.verifier, tree, url, index, (name,), launch.threads)
            units.append(Unit("verifier", index, f"verifier {index} ({name})", [member], Restarts(launch, True)))
            index += 1
    return units


def _learner(config: Config, tree: Mapping[str, Any], url: str) -> Unit:
    """The learner's unit. Its ranks are placed all or none: a part of them would hold resources and wait for ever."""
    launch = config.launch
    bundle = {"CPU": launch.learner.cpus, "GPU": launch.learner.gpus}
    bundle = {name: amount for name, amount in bundle.items() if amount} or {"CPU": 0.001}
    group = placement_group([bundle] * launch.ranks, strategy="PACK")
    if not group.wait(PLACE_SECONDS):
        have = {name: amount for name, amount in ray.cluster_resources().items() if name in ("CPU", "GPU")}
        raise Unplaceable(
            f"launch.ranks = {launch.ranks}: as many learner ranks of {bundle} do not fit the cluster, which has "
            f"{have}; lower launch.ranks or launch.learner, or add nodes"
        )
    members = [
        _member("learner", launch.learner, tree, url, rank, (), launch.threads, group) for rank in range(launch.ranks)
    ]
    label = "learner" if launch.ranks == 1 else f"learner ({launch.ranks} ranks)"
    return Unit("learner", 0, label, members, Restarts(launch), group=group)


def _member(
    role: Startable,
    share: Share,
    tree: Mapping[str, Any],
    url: str,
    index: int,
    names: Sequence[str],
    threads: int,
    group: PlacementGroup | None = None,
) -> Any:
    options: dict[str, Any] = {
        "num_cpus": share.cpus,
        "num_gpus": share.gpus,
        "max_restarts": -1,
        "max_task_retries": 0,
        "max_concurrency": 2,
    }
    if group is not None:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
    named = {"index": index, "url": url, "names": names, "threads": threads, "search": search_path.added()}
    return ray.remote(Host).options(**options).remote(role, tree, **named)
