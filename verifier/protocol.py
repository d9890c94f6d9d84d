"""The verifier protocol: the interface of a verifier, its look-up by name, and the step from judgement to verdict.

A verifier is an object with a name, a version, a fixed set of reason codes and a method `judge`. It is found by name:
built in, registered by code with `register`, or installed by another distribution as an entry point of the group
`sieve.verifiers`. `verdict` is the only place where "finished within the length limit" enters v, where an exception
becomes `error` (unknown, never wrong), and where the texts of a verifier are bounded. No I/O, no threads, no broker
calls.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import re
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from broker.errors import EX_USAGE, SieveError
from broker.extensions import installed, load
from broker.queue.wire import Completion, Outcome, Prompt, Verdict
from broker.settings import VERIFIER_NAME

ENTRY_POINTS = "sieve.verifiers"
COMMON_REASONS = frozenset({"truncated", "crashed", "deadline", "invalid_judgement"})
"""Reason codes that the service itself gives, whichever verifier is asked."""

_NAME = re.compile(VERIFIER_NAME)
_REASON = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MAX_TEXT = 2000
_BUILT_IN = {
    "arithmetic": "verifier.builtin.arithmetic:Arithmetic",
    "math": "verifier.builtin.math.verifier:MathAnswer",
    "python": "verifier.builtin.python.verifier:PythonCode",
    "lean": "verifier.builtin.lean.verifier:Lean",
}


class VerifierError(SieveError):
    """A verifier cannot be found or set up; the message names the value and the remedy."""

    exit_code = EX_USAGE


@dataclass(frozen=True, slots=True)
class Judgement:
    """The result of `Verifier.judge`.

    `reason` must be one of the verifier's `reasons`. `detail` is for people. `answer` of a pass is the answer in
    canonical form: two right answers are the same answer iff these are equal; empty means the text itself, up to white
    space. The outcome `error` is for trouble that is not the answer's fault: a malformed record, a missing tool.
    """

    outcome: Outcome
    reason: str
    detail: str = ""
    answer: str = ""


class Verifier(Protocol):
    """An object that judges answers. With concurrency above 1, one instance is called from several threads at once."""

    @property
    def name(self) -> str:
        """The name used by prompts and queues: at most 32 of a-z 0-9 _ -, the first a letter."""

    @property
    def version(self) -> str:
        """A version label that changes whenever the same answer could get a different verdict."""

    @property
    def reasons(self) -> frozenset[str]:
        """Every reason code that `judge` can give: a small fixed set, since it is a metric label."""

    def judge(self, record: Mapping[str, Any], answer: str) -> Judgement:
        """Judge `answer` (untrusted text) against the prompt's trusted `record` (sequences arrive as tuples).

        Any exception counts as `error`, so a wrong answer must be a `fail` judgement, never an exception.
        """


Factory = Callable[..., Verifier]
"""A class or function that makes the verifier; called with the configured `options` as keyword arguments."""

_registered: dict[str, Factory] = {}


def register(name: str, factory: Factory) -> None:
    """Register a verifier in this process. Registering the same factory again is harmless.

    Raises VerifierError if the name is invalid or taken: replacing a verifier silently would change which answers count
    as right.
    """
    if not _NAME.fullmatch(name):
        raise VerifierError(f"verifier name {name!r}: use a lower-case letter, then at most 31 of a-z 0-9 _ -")
    if name in _BUILT_IN or _registered.get(name, factory) is not factory:
        raise VerifierError(f"verifier {name!r} exists already; register yours under another name")
    _registered[name] = factory


def known() -> list[str]:
    """The names that `make` accepts, sorted."""
    return sorted({*_BUILT_IN, *_registered, *installed(ENTRY_POINTS)})


def make(name: str, options: Mapping[str, Any] | None = None, *, factory: str | None = None) -> Verifier:
    """The verifier called `name`, made with `options`; `factory` (`package.module:attribute`) replaces the look-up.

    Raises VerifierError for an unknown or ambiguous name, for a factory that cannot be imported or refuses its options,
    and for an object that is not a verifier of that name.
    """
    build = _import(name, factory) if factory is not None else _find(name)
    try:
        verifier = build(**(options or {}))
    except (TypeError, ValueError, OSError) as error:
        raise VerifierError(
            f"verifier {name!r} could not be made with options {dict(options or {})}: {error}"
        ) from error
    _check(name, verifier)
    return verifier


def record_check(name: str, factory: str | None = None) -> Callable[[Mapping[str, Any]], object] | None:
    """The static method `check_record` of the verifier's class, which raises ValueError for a record that it cannot
    judge by; None for a verifier without one. The verifier is not made: its options, and what it needs on its own
    machine, do not matter.

    Raises VerifierError as `make` does for a name or a factory that cannot be found.
    """
    build = _import(name, factory) if factory is not None else _find(name)
    static = isinstance(inspect.getattr_static(build, "check_record", None), staticmethod | classmethod)
    return getattr(build, "check_record") if static else None  # noqa: B009  # a Factory has no such attribute for mypy


def label(verifier: Verifier) -> str:
    """`name/version`, under which verdicts name the verifier."""
    return f"{verifier.name}/{verifier.version}"


def verdict(verifier: Verifier, completion: Completion, prompt: Prompt) -> Verdict:
    """The verdict on one completion; never raises, whatever the verifier's own code does.

    A truncated completion (`finish == "length"`) is `fail` without asking the verifier, because v includes "finished
    within the length limit". An exception, or a judgement with an undeclared outcome or reason, is `error`, which the
    broker retries elsewhere.
    """
    if completion.finish == "length":
        return Verdict(outcome="fail", reason="truncated", seconds=0.0, verifier=label(verifier))
    start = time.perf_counter()
    judgement = judged(verifier, prompt.record, completion.text)
    return Verdict(
        outcome=judgement.outcome,
        reason=judgement.reason,
        seconds=time.perf_counter() - start,
        verifier=label(verifier),
        detail=judgement.detail,
        answer=judgement.answer,
    )


def judged(verifier: Verifier, record: Mapping[str, Any], answer: str) -> Judgement:
    """The verifier's judgement of `answer`, checked and bounded; never raises, whatever its code does."""
    try:
        found = _bounded(verifier, verifier.judge(record, answer), answer)
    except (Exception, SystemExit) as error:  # foreign code: a crash is `error` for this answer only
        found = Judgement("error", "crashed", _describe(error))
    return Judgement(found.outcome, found.reason, _encodable(found.detail)[:_MAX_TEXT], found.answer)


def _bounded(verifier: Verifier, judgement: object, text: str) -> Judgement:
    if not isinstance(judgement, Judgement):
        return Judgement("error", "invalid_judgement", f"judge returned {type(judgement).__name__}, not Judgement")
    outcome, reason, detail, answer = judgement.outcome, judgement.reason, judgement.detail, judgement.answer
    if not all(isinstance(part, str) for part in (outcome, reason, detail, answer)):
        return Judgement("error", "invalid_judgement", "outcome, reason, detail and answer must be str")
    if outcome not in ("pass", "fail", "error") or reason not in verifier.reasons:
        said = f"{outcome}/{reason}"[:200]
        return Judgement("error", "invalid_judgement", f"{said} is not an outcome and one of the verifier's reasons")
    if outcome != "pass":
        return Judgement(outcome, reason, detail)
    answer = _encodable(answer or " ".join(text.split()))
    if len(answer) > _MAX_TEXT:  # cutting would make different answers equal
        answer = f"sha256:{hashlib.sha256(answer.encode()).hexdigest()}"
    return Judgement("pass", reason, detail, answer)


def _describe(error: BaseException) -> str:
    """Type, message and place of an exception; survives exceptions whose own `__str__` raises."""
    said = "".join(traceback.format_exception_only(error)).strip()
    frames = traceback.extract_tb(error.__traceback__)
    return f"{said[:1800]} ({Path(frames[-1].filename).name}:{frames[-1].lineno})"


def _encodable(text: str) -> str:
    """`text` with lone surrogates escaped, since UTF-8 cannot encode them."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _find(name: str) -> Factory:
    if name in _BUILT_IN:
        return _import(name, _BUILT_IN[name])
    points = installed(ENTRY_POINTS).get(name, [])
    where = sorted([*points, *(["register()"] if name in _registered else [])])
    if len(where) > 1:
        raise VerifierError(
            f"verifier {name!r} is defined {len(where)} times ({', '.join(where)}); uninstall all but one"
        )
    if name in _registered:
        return _registered[name]
    if points:
        return _import(name, points[0])
    near = difflib.get_close_matches(name, known(), 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known())}"
    raise VerifierError(
        f"no verifier is called {name!r}; {hint} (a distribution adds one with an entry point in {ENTRY_POINTS!r})"
    )


def _import(name: str, where: str) -> Factory:
    factory: Factory = load(f"verifier {name!r}", where, VerifierError)
    return factory


def _check(name: str, verifier: Verifier) -> None:
    for attribute, kind in (("name", str), ("version", str), ("reasons", frozenset)):
        if not isinstance(getattr(verifier, attribute, None), kind):
            raise VerifierError(f"verifier {name!r}: {type(verifier).__name__}.{attribute} must be a {kind.__name__}")
    if not callable(getattr(verifier, "judge", None)):
        raise VerifierError(f"verifier {name!r}: {type(verifier).__name__} has no method judge(record, answer)")
    if verifier.name != name:
        raise VerifierError(
            f"verifier {name!r}: {type(verifier).__name__}.name is {verifier.name!r}; the names must match"
        )
    if not verifier.version or len(label(verifier)) > 64:
        raise VerifierError(f"verifier {name!r}: version {verifier.version!r} must be 1 to {63 - len(name)} characters")
    bad = sorted(str(reason) for reason in verifier.reasons if not _REASON.fullmatch(str(reason)))
    if bad or len(verifier.reasons) > 64:
        raise VerifierError(
            f"verifier {name!r}: reasons must be at most 64 codes of a-z 0-9 _; it has {len(verifier.reasons)}, "
            f"of which badly written: {bad[:3]}"
        )
