"""One service's connection to one run, as every role uses it; the clients of the roles derive from it.

The run is a state machine. Each arrow is one method of a client and one script in `lua/`, atomic and safe to repeat:

    actor_client      TICKET take, release   OFFER offer
    verifier_client   JUDGE receive, judge, requeue   CLAIM receive
                      (READY: when judge settles the last completion of a group)
    learner_client    begin, OPEN open_run   LEASE lease, groups   COMMIT commit   ROLLBACK rollback   weights: publish
                      evaluation: request_eval … eval_done
    admin_client      RETRY retry_dead; depths and audit read only

Keys, all under `{sieve:<run>}:` (one hash tag, so one slot of a Redis cluster):

    spec, prompts:<lane>     what the run is, with the schema number of keys and messages; written by open_run
    state                    hash of counters and pointers: version, steps, issued, absorbed, bytes, epoch …
    group:<group_id>         hash: lane, order, n, version, absorbed, attempt, granted, left, judged, short, oldest,
                             bytes;
                             per index o<i> offered, c<i> completion, j<i> verdict, b<i> base log-probs
    held, returned, evalq    tickets: held by an actor; waiting to be issued again; of evaluations, waiting
    verify:<verifier>        stream of completions with the consumer group `verifiers`
    verifiers                set of the verifiers that have a stream
    ready:train, ready:eval:<version>      groups whose completions are all judged
    lease:<step>, leased     groups of each step that is leased, or committed after the oldest kept checkpoint; the step
                             for which each uncommitted one is leased
    checkpoints              committed checkpoints that are kept: step → name, groups and completions trained by then
    versions                 what each version number means: number → epoch, step, hash of its files
    again                    numbers that a rollback took back, to be issued anew before any other
    open, live               train groups not yet leased (score: absorbed count at issue); not yet committed or dropped
    done, dropped            bitmaps over ticket numbers: the tombstones
    deaths                   hash: entry of a verify queue → a line for each consumer that gave no verdict on it
    dead                     stream of dead letters with their reasons and histories
    canaries, canary-reports               broker/weights/canary.py
    transfer, receivers, answers, acks     broker/weights/broadcast.py
    z, evals                 Z statistics per train prompt; evaluations and their state
    services, seen, grants   heartbeats; when each arrived; the last grant of each actor

Shared by the runs of one server, under `{sieve-verdicts}:`: verdicts (content hash → verdict), used (hash by last use),
counts (bytes, hits and misses).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self, TypeVar, cast, get_args

import redis

from broker.errors import BrokerUnavailable, RunConflict, RunUnknown
from broker.queue import scripts
from broker.queue.arguments import Argument
from broker.queue.heartbeat import Heartbeat
from broker.queue.state import Published, RunSpec, VersionName
from broker.queue.wire import SCHEMA, Prompt, WireError, unpack
from broker.settings import BrokerSettings, Lane, RunSettings

T = TypeVar("T")

VERDICT_CACHE = "{sieve-verdicts}"
"""Key prefix of the verdict cache: a hash tag of its own, since it belongs to no run."""


class RunConnection:
    """A connection to one run. Safe to use from several threads."""

    def __init__(self, redis_client: redis.Redis, url: str, settings: BrokerSettings, run: RunSettings) -> None:
        self.settings = settings
        self.run = run
        self.prefix = "{sieve:" + run.name + "}"
        self._redis = redis_client
        self._url = url
        self._scripts = scripts.Scripts(redis_client, self.prefix, settings.connect_seconds)
        self._spec: RunSpec | None = None
        self._prompts: dict[tuple[Lane, int], Prompt | bytes] = {}
        """The prompts read so far; packed until they are asked for."""

    @classmethod
    def connect(cls, settings: BrokerSettings, run: RunSettings, *, url: str | None = None) -> Self:
        """A connection to `url`, else to `settings.url`; waits for the server at most `settings.connect_seconds`.

        Raises:
            BrokerUnavailable: no url, no answer by the deadline, a refused password, or a server older than 6.2.
            RunConflict: the run was written with another schema.
        """
        if url is None:
            if settings.url is None:
                raise BrokerUnavailable(
                    "no Redis to connect to: set broker.url, or start `sieve broker CONFIG` or `sieve run CONFIG`",
                    lasting=True,
                )
            url = settings.url.get_secret_value()
        try:
            client = scripts.connect(url, socket_timeout=min(10.0, max(3.0, settings.connect_seconds)))
        except ValueError:  # its message may hold a part of the password
            raise BrokerUnavailable(
                "broker.url cannot be read: use redis://, rediss:// or unix://, and write special signs of a password "
                "in percent-encoding (%2F for /, %40 for @)",
                lasting=True,
            ) from None
        info = scripts.repeat(
            lambda: client.info("server"), deadline_seconds=settings.connect_seconds, what="connecting to Redis"
        )
        version = str(info["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < scripts.OLDEST_REDIS:
            oldest = ".".join(map(str, scripts.OLDEST_REDIS))
            raise BrokerUnavailable(f"Redis {version} is too old: use {oldest} or newer", lasting=True)
        connection = cls(client, url, settings, run)
        try:
            connection._read_spec()
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    # --- access for the clients of the roles and for broker/weights

    def script(self, script: str, /, **arguments: Argument) -> Any:
        """The reply of one of `lua/`, called with the arguments that it declares."""
        return self._scripts(script, **arguments)

    def fields(self, name: str, wanted: Sequence[str]) -> list[bytes | None]:
        """Fields of the hash at key `name`; None for each that is not set."""
        found = self._retry(lambda: self._redis.hmget(self._key(name), list(wanted)), f"reading {name}")
        return cast(list[bytes | None], found)

    def _key(self, name: str) -> str:
        return f"{self.prefix}:{name}"

    def _retry(self, action: Callable[[], T], what: str) -> T:
        return self._scripts.retry(action, what)

    # --- the run

    def run_spec(self, *, fresh: bool = False) -> RunSpec | None:
        """The run's specification, None until a learner has opened the run. Read once, unless `fresh`.

        Raises:
            RunConflict: the run was written with another schema.
        """
        if self._spec is None or fresh:
            self._spec = self._read_spec()
        return self._spec

    def _read_spec(self) -> RunSpec | None:
        data = self._retry(lambda: self._redis.get(self._key("spec")), "reading the run's specification")
        if data is None:
            return None
        body = json.loads(cast(bytes, data))
        schema = body.pop("schema", None)
        if schema != SCHEMA:
            written = "no schema number" if schema is None else f"schema {str(schema)[:16]}"
            # A private Redis is in the run directory, which --fresh moves aside; on another server the keys stay.
            fresh = ", or start it anew with `sieve run CONFIG --fresh`" if self.settings.url is None else ""
            raise RunConflict(
                f"run {self.run.name!r} is in Redis with {written}, and this release reads and writes schema {SCHEMA}: "
                f"give this run another run.name{fresh}"
            )
        return RunSpec.model_validate(body)

    def _opened(self) -> RunSpec:
        spec = self.run_spec()
        if spec is None:
            raise RunUnknown(f"no learner has opened run {self.run.name!r} yet: start `sieve learner CONFIG`")
        return spec

    def prompt(self, lane: Lane, index: int) -> Prompt:
        """One prompt of the run; cached.

        Raises:
            WireError: there is none of this index, or it cannot be read.
        """
        if (lane, index) not in self._prompts:
            self._load_prompts([(lane, index)])
        data = self._prompts.get((lane, index))
        if data is None:
            raise WireError(f"Prompt: no prompt {index} in the {lane} lane")
        if isinstance(data, bytes):
            data = self._prompts[(lane, index)] = unpack(Prompt, data)
        return data

    def _load_prompts(self, wanted: Iterable[tuple[Lane, int]]) -> None:
        """Read these prompts into the cache, as far as they are not there and exist, in one round trip per lane."""
        missing = set(wanted).difference(self._prompts)
        for lane in get_args(Lane):
            indices = [index for at, index in missing if at == lane]
            if indices:
                found = self.fields(f"prompts:{lane}", [str(index) for index in indices])
                known = {(lane, index): data for index, data in zip(indices, found, strict=True) if data is not None}
                self._prompts.update(known)

    def version(self) -> int:
        """Newest published version (0 also before the base is published)."""
        return int(self._state("version") or 0)

    def versions(self) -> dict[int, Published]:
        """Every version that the pointer has ever named, by number."""
        raw = self._retry(lambda: self._redis.hgetall(self._key("versions")), "reading the versions")
        return {int(number): _published(int(number), body) for number, body in cast(dict[bytes, bytes], raw).items()}

    def published(self, version: int) -> Published | None:
        """What the pointer named as `version`; None when it never did."""
        (body,) = self.fields("versions", [str(version)])
        return None if body is None else _published(version, body)

    def checkpoints(self) -> dict[int, str]:
        """Names of the committed checkpoints that are kept, by step."""
        raw = self._retry(lambda: self._redis.hgetall(self._key("checkpoints")), "reading the checkpoints")
        found = cast(dict[bytes, bytes], raw)
        return {int(step): found[step].decode().split()[0] for step in sorted(found, key=int)}

    def z(self) -> dict[int, bytes]:
        """Packed Z statistics per train prompt, as of the last commit."""
        raw = self._retry(lambda: self._redis.hgetall(self._key("z")), "reading Z")
        return {int(prompt): data for prompt, data in cast(dict[bytes, bytes], raw).items()}

    def finished(self) -> bool:
        """Whether the learner has marked the run as finished."""
        return self._state("finished") == b"1"

    def _state(self, field: str) -> bytes | None:
        return self.fields("state", [field])[0]

    # --- services

    def heartbeat(self, heartbeat: Heartbeat) -> None:
        """Record a heartbeat, and reissue the tickets of dead actors. Phase `stopped` removes the service."""
        body = heartbeat.model_dump_json(exclude={"age_seconds"})
        lease = self.settings.lease_seconds
        self.script("heartbeat", id=heartbeat.id, body=body, phase=heartbeat.phase, lease_seconds=lease)

    def services(self) -> list[Heartbeat]:
        """The last heartbeat of every service seen lately, with its age, ordered by role and index."""
        raw = self.script("services")
        found = []
        for body, age in zip(raw[::2], raw[1::2], strict=True):
            found.append(Heartbeat.model_validate_json(body).model_copy(update={"age_seconds": float(age)}))
        return sorted(found, key=lambda heartbeat: (heartbeat.role, heartbeat.index, heartbeat.id))


def _published(version: int, body: bytes) -> Published:
    epoch, step, identity = body.decode().split(" ")
    return Published(VersionName(version, int(epoch)), int(step), identity)
