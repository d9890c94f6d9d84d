"""What this machine lacks to serve a configuration, said before a run finds out. Looks, starts nothing that stays.

One finding for each thing that is needed: the broker's server, the base model and prompts, the actor's engine, and
every verifier that is served (made as a verifier pod would make it; Lean's toolchain is looked at without starting
Lean).
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import NamedTuple

from pydantic import ValidationError

from broker.errors import SieveError
from broker.runtime.redis_server import find_binary
from deploy.config.checks import problems_of
from deploy.config.tree import Config
from verifier.protocol import make
from verifier.settings import QueueSettings

ENGINES = {"torch": ("torch", "transformers"), "openai": ("aiohttp", "transformers")}
"""Packages an engine imports."""


class Finding(NamedTuple):
    subject: str
    fine: bool
    text: str


def examine(config: Config) -> Iterator[Finding]:
    """Every finding in the order of the pipeline; `text` of one that is not fine holds the remedy."""
    yield _broker(config)
    problems = [*problems_of(config, files=True)]
    yield from (Finding("settings and files", False, problem) for problem in problems)
    if not problems:
        yield Finding("settings and files", True, f"model {config.model.path}, prompts {config.data.train}")
    engine = config.actor.engine
    absent = [package for package in ENGINES.get(engine, ()) if find_spec(package) is None]
    remedy = f"{', '.join(absent)} not installed: pip install sieve-rl"
    yield Finding("actor engine", not absent, remedy if absent else engine)
    for name, queue in config.verifier.serve.items():
        yield from _verifier(name, queue)


def _broker(config: Config) -> Finding:
    if config.broker.url is not None:
        return Finding("broker", True, "a server of yours (broker.url); `sieve status` says whether it answers")
    try:
        return Finding("broker", True, str(find_binary()))
    except SieveError as error:
        return Finding("broker", False, str(error))


def _verifier(name: str, queue: QueueSettings) -> Iterator[Finding]:
    subject = f"verifier {name}"
    if name == "lean" and queue.factory is None:
        from verifier.builtin.lean.doctor import check
        from verifier.builtin.lean.settings import LeanSettings

        try:
            missing = check(LeanSettings.model_validate(queue.options))
        except ValidationError as error:
            missing = [str(item["msg"]) for item in error.errors()]
        yield from (Finding(subject, False, line) for line in missing)
        if not missing:
            yield Finding(subject, True, "toolchain and server found")
        return
    try:
        verifier = make(name, queue.options, factory=queue.factory)
    except SieveError as error:
        yield Finding(subject, False, str(error))
        return
    try:
        confined = getattr(verifier, "info", {}).get("sandbox", "")
        yield Finding(subject, True, f"{name}/{verifier.version}" + (f", sandbox {confined}" if confined else ""))
    finally:
        if hasattr(verifier, "close"):
            verifier.close()
