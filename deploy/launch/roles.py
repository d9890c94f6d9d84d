"""The service class of each role, imported when one is made, so that a verifier's process never loads torch."""

from __future__ import annotations

import importlib
import typing
from collections.abc import Sequence

from broker.runtime.service import Service
from deploy.config.tree import Config

Startable = typing.Literal["actor", "verifier", "learner"]
SERVICES: dict[Startable, tuple[str, str]] = {
    "actor": ("actor.service", "ActorService"),
    "verifier": ("verifier.service", "VerifierService"),
    "learner": ("learner.service", "LearnerService"),
}


def make(
    role: Startable, config: Config, *, index: int, url: str | None, names: Sequence[str] = ()
) -> Service[typing.Any]:
    """A service of `role` that is ready to `run()`. `names` are the queues that a verifier serves, by default all of
    verifier.serve."""
    module, name = SERVICES[role]
    kind = getattr(importlib.import_module(module), name)
    more = {"names": tuple(names)} if role == "verifier" else {}
    return typing.cast("Service[typing.Any]", kind(config, index=index, url=url, **more))
