r"""Final answers of mathematical problems: the last `\boxed{…}` must mean the same as the record's answer.

In this order:

    1. the record's answer is read, its kind declared or inferred (record.py)
    2. the last box is cut out and its length and characters are checked (box.py)
    3. words, choices and times are compared as text
    4. anything else is read into a typed value (spelling.py, grammar.py) and compared member by member (compare.py):
       numbers exactly in this process, expressions numerically at rising precision in a killable one (worker.py)

An answer must be finished: where the record's answer is a number, a computation is not one; `question`, where given,
must not be copied. What cannot be read, or cannot be decided, is never a pass.

Fail or error. An answer that uses up its CPU seconds or a worker's memory is `fail` (too_expensive): its cost is its
own property, measured in CPU time, which does not depend on the load of the machine, and with `error` a policy could
have its wrong answers retried and its groups closed short. A worker that dies of anything else, cannot be started or
does not get the CPU is `error`, because nothing is known about the answer. So is a record that cannot be read.
"""

from __future__ import annotations

import importlib.util
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from verifier.builtin.failed import Failed
from verifier.builtin.math.box import MAX_CHARS, admitted, check_cost, last_boxed
from verifier.builtin.math.compare import compare
from verifier.builtin.math.grammar import read
from verifier.builtin.math.record import PHRASES, Accepted, accepted, check_towers, text_key, time_key
from verifier.builtin.math.spelling import FUNCTIONS, SAME, Unreadable, tokens
from verifier.helper_process import WorkerDied, Workers, WorkerStalled
from verifier.protocol import Judgement

STALL_FACTOR = 20.0
"""Wall-clock seconds allowed per CPU second before the worker counts as stalled."""

_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi varphi chi psi omega"
)
_ALLOWED = (
    "frac sqrt cdot times div pm mp infty text textbf textit textrm mathrm mbox circ degree arcsin arccos arctan "
    "cup cap setminus emptyset in begin end overline vec hat bar mathbf mathbb prime dots left right big Big bigg "
    "Bigg bigl bigr Bigl Bigr quad qquad displaystyle textstyle boldsymbol bf rm it color textcolor boxed fbox "
    "dollar euro pounds lfloor rfloor lceil rceil langle rangle to operatorname hline"
)
COMMANDS = frozenset({*_ALLOWED.split(), *_GREEK.split(), *_GREEK.title().split(), *FUNCTIONS, *SAME, *SAME.values()})
"""LaTeX commands an answer may use; others only where the record's own answer uses them. Missing on purpose: what
leaves the work undone (sum, prod, int, lim, binom, gcd, max, mod …) and what claims no value (approx, sim)."""

_COMMAND = re.compile(r"\\([A-Za-z]+)")
_DERIVATIVE = re.compile(r"\\frac\s*\{?\s*d[^{}]*\}?\s*\{\s*d\s*[A-Za-z]")
_PRIME = re.compile(r"'|\\prime(?![A-Za-z])")
_OPERATION = re.compile(r"[-+*^!]|\\(?:cdot|times|div|sqrt|sum|prod|int|frac)|/")


class MathAnswer:
    """The verifier `math`; see the module's docstring for what is right."""

    name = "math"
    version = "2"
    reasons = frozenset(
        {"correct", "wrong", "no_answer", "empty", "malformed", "too_long", "bad_character", "too_expensive"}
        | {"unreadable", "unevaluated", "restated", "inexact", "unit", "undecided"}
        | {"malformed_record", "worker_died", "stalled"}
    )

    def __init__(self, cpu_seconds: float = 2.0, memory_bytes: int = 1 << 30, recycle: int = 5000) -> None:
        """`cpu_seconds`: computing time of one comparison; `memory_bytes`: address space of one worker; `recycle`:
        comparisons after which a worker is replaced.

        Raises ValueError for limits that cannot work and for a missing python-flint.
        """
        if not 0.1 <= cpu_seconds <= 600:
            raise ValueError(f"cpu_seconds = {cpu_seconds}: give 0.1 to 600")
        if memory_bytes < 256 << 20:
            raise ValueError(f"memory_bytes = {memory_bytes}: the arithmetic alone needs {256 << 20}")
        if recycle < 1:
            raise ValueError(f"recycle = {recycle}: give at least 1")
        if importlib.util.find_spec("flint") is None:
            raise ValueError("python-flint is not installed: pip install 'sieve-rl[math]'")
        self.cpu_seconds = cpu_seconds
        script = Path(__file__).with_name("worker.py")
        self._workers = Workers([sys.executable, "-I", "-B", str(script), str(memory_bytes)], recycle=recycle)

    @staticmethod
    def check_record(record: Mapping[str, Any]) -> str:
        """The kind of the record's answer, declared or inferred. Raises ValueError with what to correct or declare."""
        golds, _ = accepted(record)
        return " | ".join(dict.fromkeys(gold.kind for gold in golds))

    def judge(self, record: Mapping[str, Any], answer: str) -> Judgement:
        """Pass, fail with a reason, or error: malformed_record, worker_died, stalled."""
        try:
            golds, question = accepted(record)
        except ValueError as error:
            return Judgement("error", "malformed_record", str(error))
        longest = max(gold.longest for gold in golds)
        try:
            given = admitted(last_boxed(answer, longest), longest, also="".join(gold.text for gold in golds))
        except Failed as refused:
            return Judgement("fail", refused.reason, refused.detail)
        said = Judgement("fail", "wrong", f"{given} is not {golds[0].text}")
        for gold in golds:
            try:
                self._compare(gold, given, question)
            except Failed as refused:
                said = Judgement("fail", refused.reason, refused.detail)
            except _Trouble as trouble:
                return Judgement("error", trouble.reason, str(trouble))
            else:
                # Right answers mean the same: one answer, whatever it looks like.
                return Judgement("pass", "correct", "", golds[0].text)
        return said

    def close(self) -> None:
        """End idle workers."""
        self._workers.close()

    def _compare(self, gold: Accepted, given: str, question: str) -> None:
        """Return where the answer is right. Raises Failed, _Trouble."""
        if gold.shape is None:
            key = time_key(given) if gold.kind == "time" else text_key(given)
            if key != gold.key and not (gold.tokens and _same_tokens(gold, given)):
                raise Failed("wrong", f"{given[:100]} is not {gold.text[:100]}")
            return
        given = PHRASES.get(text_key(given), given)
        if len(given) > MAX_CHARS:
            raise Failed("too_long", f"{len(given)} characters, at most {MAX_CHARS}")
        check_cost(given)
        number = gold.kind == "number"
        try:
            if _same_tokens(gold, given):
                return
            found = tokens(given)
            if not number:
                _check_finished(gold, given, question)
            shape = read(found)
            check_towers(shape)
        except Unreadable as unreadable:
            if not number:
                raise Failed("unreadable", f"{given[:100]}: {unreadable}") from None
            if _OPERATION.search(given):
                raise Failed("unevaluated", f"{given[:100]} is a computation; a number is asked for") from None
            raise Failed("wrong", f"{given[:100]} is not a number") from None
        except RecursionError:
            raise Failed("too_expensive", "an expression of too many levels") from None
        compare(gold.shape, shape, lambda ask, one, other: self._ask(ask, one, other, gold.text))

    def _ask(self, ask: Literal["equal", "relation"], gold: Any, given: Any, text: str) -> bool:
        """Ask a worker. Raises Failed (too_expensive, undecided) and _Trouble."""
        job = {"ask": ask, "gold": gold, "answer": given, "seconds": self.cpu_seconds}
        wait = 5.0 + STALL_FACTOR * self.cpu_seconds
        try:
            said = self._workers.ask(job, answers=2, deadline_seconds=wait, last="gold")
        except WorkerDied as died:
            spent = died.code == -signal.SIGPROF
            if spent and not died.said:
                raise _Trouble(
                    "malformed_record", f"record.answer {text[:100]!r} takes over {self.cpu_seconds:g} s to compute"
                ) from None
            if spent:
                raise Failed("too_expensive", f"over {self.cpu_seconds:g} s of computing") from None
            if died.code == -signal.SIGABRT and died.said:  # how FLINT ends when memory runs out
                raise Failed("too_expensive", "the comparison needs more memory than a worker may have") from None
            raise _Trouble("worker_died", f"the comparing process ended with {died.code}") from None
        except WorkerStalled:
            raise _Trouble("stalled", "the comparing process got no CPU: is the machine overloaded?") from None
        except OSError as error:
            raise _Trouble("worker_died", f"the comparing process cannot be started: {error}") from None
        if said[0].get("gold") is not True:
            raise _Trouble("malformed_record", f"record.answer {text[:100]!r} has no value")
        if said[1].get("undecided"):
            raise Failed("undecided", "equality cannot be decided at the highest precision")
        return said[1].get("equal") is True


def _same_tokens(gold: Accepted, given: str) -> bool:
    """Whether the answer is the record's but for white space and typography."""
    try:
        return [(one.kind, one.text) for one in tokens(given)] == [(one.kind, one.text) for one in gold.tokens]
    except Unreadable:
        return False


class _Trouble(Exception):
    """Nothing is known about the answer."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def _commands(text: str) -> set[str]:
    r"""Names of the LaTeX commands in `text`; the letter after a row break (`\\c`) is none."""
    return set(_COMMAND.findall(text.replace("\\\\", " ")))


def _check_finished(gold: Accepted, given: str, question: str) -> None:
    """What means the right value and is no answer. Raises Failed."""
    unknown = sorted(_commands(given) - COMMANDS - _commands(gold.text))
    if unknown:
        raise Failed("unevaluated", f"\\{unknown[0]} is not part of a finished answer to this question")
    if _DERIVATIVE.search(given) and not _DERIVATIVE.search(gold.text):
        raise Failed("unevaluated", "a derivative that is not taken")
    if bool(_PRIME.search(given)) is not bool(_PRIME.search(gold.text)):
        raise Failed("wrong", "a prime makes another function of it")
    squeezed = re.sub(r"[\s$]|\\[,;! ]|\\left|\\right", "", question.replace("\\dfrac", "\\frac"))
    plain = re.sub(r"\s", "", given)
    if len(plain) > 2 and _OPERATION.search(given) and plain in squeezed:
        raise Failed("restated", "the question's own expression")
