"""The configuration of a run: one pydantic model with a section for each package, and its YAML form.

Each section is defined, with its limits, in the package that reads it. load.py reads a configuration from files and
overrides, checks.py checks what several settings mean together, explain.py words what is wrong. Never imports torch,
ray or transformers, so that `sieve config` answers at once.
"""

from __future__ import annotations

import typing
from typing import Any

import yaml
from pydantic import BaseModel

from actor.settings import ActorSettings
from broker.errors import redact
from broker.settings import Shared
from deploy.config.settings import LaunchSettings, SweepSettings
from learner.settings import LearnerSettings
from verifier.settings import VerifierSettings


class Config(Shared):
    """Everything a run needs to know. Sections that several packages read come from broker/settings.py."""

    actor: ActorSettings = ActorSettings()
    verifier: VerifierSettings = VerifierSettings()
    learner: LearnerSettings = LearnerSettings()
    launch: LaunchSettings = LaunchSettings()
    sweep: SweepSettings = SweepSettings()

    @property
    def unsafe(self) -> tuple[str, ...]:
        return self.actor.vllm.unsafe


def plain(config: BaseModel, *, secrets: bool = False) -> dict[str, Any]:
    """The tree as JSON-compatible values, ready for YAML or for another process. Passwords are masked unless
    `secrets`."""
    tree = config.model_dump(mode="json")
    url = typing.cast("Config", config).broker.url
    if url is not None:
        tree["broker"]["url"] = url.get_secret_value() if secrets else _masked(url.get_secret_value())
    return tree


def _masked(url: str) -> str:
    """The url without its secrets; nothing of a text with an @ that is no url, for it may be a mistyped one."""
    masked = redact(url)
    return "***" if masked == url and ("@" in url or "://" not in url) else masked


def dump(config: Config) -> str:
    """The whole tree as YAML, defaults included, passwords masked."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, width=120)
