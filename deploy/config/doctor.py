"""`sieve doctor`: what this machine has, and lacks, to run a configuration.

One finding for each thing that is needed: the Redis server, the model and the prompts, the actor's engine, and every
verifier that is served. Verifiers are made as a verifying service would make them, and closed again; Lean is not
started, only its toolchain is checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import NamedTuple

from pydantic import ValidationError

from broker.errors import SieveError
from broker.runtime.redis_program import find_binary
from deploy.config.checks import problems_of
from deploy.config.tree import Config
from verifier.protocol import make
from verifier.settings import QueueSettings

ENGINE_PACKAGES = {
    "torch": ("torch", "transformers"),
    "vllm": ("vllm",),
    "openai": ("aiohttp", "transformers"),
}
"""The packages that each engine imports."""
ENGINE_EXTRAS = {"vllm": "sieve-rl[vllm]"}
"""What to install for an engine whose packages the plain distribution does not bring."""


class Finding(NamedTuple):
    """One thing that the configuration needs, and whether this machine has it."""

    subject: str
    fine: bool
    text: str
    """What was found, or what is missing with the remedy."""


def examine(config: Config) -> Iterator[Finding]:
    """All findings, in the order of the pipeline."""
    yield _broker(config)
    yield from _settings(config)
    yield _engine(config.actor.engine)
    for name, queue in config.verifier.serve.items():
        yield from _verifier(name, queue)


def _settings(config: Config) -> Iterator[Finding]:
    problems = [*problems_of(config, files=True)]
    yield from (Finding("settings and files", False, problem) for problem in problems)
    if not problems:
        yield Finding("settings and files", True, f"model {config.model.path}, prompts {config.data.train}")


def _engine(engine: str) -> Finding:
    missing = [package for package in ENGINE_PACKAGES.get(engine, ()) if find_spec(package) is None]
    if missing:
        install = f"pip install '{ENGINE_EXTRAS[engine]}'" if engine in ENGINE_EXTRAS else "pip install sieve-rl"
        return Finding("actor engine", False, f"{engine}: {', '.join(missing)} not installed; {install}")
    return Finding("actor engine", True, engine)


def _broker(config: Config) -> Finding:
    if config.broker.url is not None:
        return Finding("broker", True, "your own server (broker.url); `sieve status` says whether it answers")
    try:
        return Finding("broker", True, str(find_binary()))
    except SieveError as error:
        return Finding("broker", False, str(error))


def _verifier(name: str, queue: QueueSettings) -> Iterator[Finding]:
    subject = f"verifier {name}"
    if name == "lean" and queue.factory is None:
        from verifier.builtin.lean.doctor import check, trial
        from verifier.builtin.lean.settings import LeanSettings

        try:
            settings = LeanSettings.model_validate(queue.options)
        except ValidationError as error:
            yield from (Finding(subject, False, str(item["msg"])) for item in error.errors())
            return
        missing = check(settings)
        yield from (Finding(subject, False, line) for line in missing)
        if not missing:
            yield Finding(subject, True, "toolchain and server found; the self-test follows, which may take minutes")
            yield from (Finding(subject, fine, line) for fine, line in trial(settings))
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
