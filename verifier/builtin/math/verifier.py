r"""The verifier `math`: the last `\boxed{…}` of an answer must be equal in value to the record's answer.

Record: `{"answer": latex or a list of accepted ones, "question": text (optional)}`. In this order:

    1. the last box is extracted and checked as text (final_answer.py): huge, odd or unfinished answers fail
    2. the same text                             → right
    3. the record's answer is a number or words  → exact comparison here, never by the algebra
    4. anything else                             → member by member with math-verify, in a killable process

A right answer must be finished: where the record's answer is a number, the answer must be a number and not a
computation, and an expression copied from `question` fails. The cases in which math-verify is known to be too lenient
or too strict are listed in docs/reference/verifiers.md.

Fail or error. An answer that uses up its CPU seconds or a worker's memory is `fail` (too_expensive): its cost is its
own property, measured in CPU time, which does not depend on the load of the machine, and with `error` a policy could
have its wrong answers retried and its groups closed short. A worker that dies of anything else, cannot be started or
does not get the CPU is `error`, because nothing is known about the answer. So is a record that cannot be read, or not
in time.
"""

from __future__ import annotations

import importlib.util
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verifier.builtin.failed import Failed
from verifier.builtin.math.final_answer import COMMANDS, clean, last_boxed
from verifier.builtin.math.notation import commands, known_unit, number, parts, same_text, symbols, words
from verifier.helper_process import WorkerDied, Workers, WorkerStalled
from verifier.protocol import Judgement

MAX_ALTERNATIVES = 16
MAX_MEMBERS = 32
"""The most members of a tuple, list or set."""
STALL_FACTOR = 20.0
"""Wall-clock seconds per CPU second after which a worker counts as stalled."""

_NAMED = re.compile(r"\s*([A-Za-z](?:_\{?\w+\}?)?(?:\([a-z](?:,[a-z])*\))?'?)\s*=\s*")
_EQUALS = re.compile(r"=")
_RELATION = re.compile(r"[<>]|\\(?:lt|gt|leq?|geq?|in)(?![A-Za-z])")
_DERIVATIVE = re.compile(r"\\frac\s*\{?\s*d[^{}]*\}?\s*\{\s*d\s*[A-Za-z]")
_PRIME = re.compile(r"'|\\prime(?![A-Za-z])")
_OPERATION = re.compile(r"[-+*^!]|\\(?:cdot|times|div|sqrt|sum|prod|int|frac)|/")


class MathAnswer:
    """The verifier `math`; see the module's docstring for what is right."""

    name = "math"
    version = "1"
    reasons = frozenset(
        {"correct", "wrong", "no_answer", "empty", "malformed", "too_long", "bad_character", "too_expensive"}
        | {"unreadable", "unevaluated", "restated", "inexact", "unit", "malformed_record", "worker_died", "stalled"}
    )

    def __init__(self, cpu_seconds: float = 2.0, memory_bytes: int = 1 << 30, recycle: int = 5000) -> None:
        """`cpu_seconds`: computing time of one comparison; `memory_bytes`: address space of one worker; `recycle`:
        comparisons after which a worker is replaced.

        Raises ValueError for limits that cannot work and for a missing math-verify.
        """
        if not 0.1 <= cpu_seconds <= 600:
            raise ValueError(f"cpu_seconds = {cpu_seconds}: give 0.1 to 600")
        if memory_bytes < 256 << 20:
            raise ValueError(f"memory_bytes = {memory_bytes}: the algebra alone needs {256 << 20}")
        if recycle < 1:
            raise ValueError(f"recycle = {recycle}: give at least 1")
        if importlib.util.find_spec("math_verify") is None:
            raise ValueError("math-verify is not installed: pip install 'sieve-rl[math]'")
        self.cpu_seconds = cpu_seconds
        script = Path(__file__).with_name("worker.py")
        self._workers = Workers([sys.executable, "-I", "-B", str(script), str(memory_bytes)], recycle=recycle)

    def judge(self, record: Mapping[str, Any], answer: str) -> Judgement:
        """Judge one final answer; error is malformed_record, worker_died or stalled."""
        try:
            golds, question = _read(record)
        except (ValueError, Failed) as error:
            return Judgement("error", "malformed_record", str(error))
        try:
            given = clean(last_boxed(answer))
        except Failed as failed:
            return Judgement("fail", failed.reason, failed.detail)
        said = Judgement("fail", "wrong", f"{given} is not {golds[0]}")
        for gold in golds:
            try:
                said = self._compare(gold, given, question)
            except Failed as failed:
                said = Judgement("fail", failed.reason, failed.detail)
            except _Trouble as trouble:
                return Judgement("error", trouble.reason, str(trouble))
            if said.outcome == "pass":
                # All right answers are equal in value, so their canonical form is the record's answer.
                return Judgement("pass", "correct", "", golds[0])
        return said

    def close(self) -> None:
        """End the idle worker processes."""
        self._workers.close()

    def _compare(self, gold: str, given: str, question: str) -> Judgement:
        if same_text(gold, given):
            return Judgement("pass", "correct")
        gold, given = _unnamed(gold, given)
        if same_text(gold, given):
            return Judgement("pass", "correct")
        value, text = number(gold), words(gold)
        if value is not None:
            return _same_number(value, given)
        if text is not None:
            other = words(given) or given
            # A single letter is a choice or a name, and its case matters.
            same = other == text if len(text) == 1 else other.lower() == text.lower()
            return Judgement("pass", "correct") if same else Judgement("fail", "wrong", f"{other} is not {text}")
        _check_symbolic(gold, given, question)
        for gold_member, member in _members(gold, given):
            pair = number(gold_member), number(member)
            if pair[0] is not None and (pair[1] is not None or not _EQUALS.search(member)):
                judged = _same_number(pair[0], member)
                if judged.outcome != "pass":
                    return judged
            elif not same_text(gold_member, member):
                if re.search(r"\.\d", member) and not re.search(r"\.\d", gold_member):
                    raise Failed("inexact", "decimals where the record is exact")
                if not self._equal(gold_member, member):
                    raise Failed("wrong", f"{member} is not {gold_member}")
        return Judgement("pass", "correct")

    def _equal(self, gold: str, given: str) -> bool:
        """Whether math-verify finds the two equal. Raises Failed (unreadable, too_expensive) and _Trouble."""
        job = {"gold": gold, "answer": given, "seconds": self.cpu_seconds}
        wait = 5.0 + STALL_FACTOR * self.cpu_seconds
        try:
            said = self._workers.ask(job, answers=2, deadline_seconds=wait, last="gold")
            if said[-1].get("spoilt"):  # perhaps by an earlier comparison: ask another process
                said = self._workers.ask(job, answers=2, deadline_seconds=wait, last="gold")
                if said[-1].get("spoilt"):
                    raise Failed("too_expensive", "the comparison needs more memory than a worker may have")
        except WorkerDied as died:
            spent = died.code == -signal.SIGPROF
            if spent and not died.said:
                raise _Trouble(
                    "malformed_record", f"record.answer {gold[:100]!r} takes over {self.cpu_seconds:g} s to read"
                ) from None
            if spent:
                raise Failed("too_expensive", f"over {self.cpu_seconds:g} s of computing") from None
            raise _Trouble("worker_died", f"the comparing process ended with {died.code}") from None
        except WorkerStalled:
            raise _Trouble("stalled", "the comparing process got no CPU time; the machine is overloaded") from None
        except OSError as error:
            raise _Trouble("worker_died", f"the comparing process cannot be started: {error}") from None
        if said[0].get("gold") is not True:
            raise _Trouble("malformed_record", f"math-verify cannot read record.answer {gold[:100]!r}")
        if said[1].get("unreadable"):
            raise Failed("unreadable", f"{given[:100]} is not mathematics that can be read")
        return said[1].get("equal") is True


class _Trouble(Exception):
    """The comparison could not be carried out; nothing is known about the answer."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def _read(record: Mapping[str, Any]) -> tuple[list[str], str]:
    """The accepted answers, cleaned and checked like any answer, and the question. Raises ValueError."""
    answers, question = record.get("answer"), record.get("question", "")
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list | tuple) or not 1 <= len(answers) <= MAX_ALTERNATIVES:
        raise ValueError(f"record.answer must be LaTeX text or a list of 1 to {MAX_ALTERNATIVES} of them")
    if not all(isinstance(answer, str) for answer in answers) or not isinstance(question, str):
        raise ValueError("record.answer and record.question must be text")
    golds = []
    for answer in answers:
        try:
            gold = clean(last_boxed(answer) if "\\boxed" in answer else answer)
        except Failed as failed:
            raise ValueError(f"record.answer {answer[:100]!r}: {failed}") from None
        letters = {symbol for symbol in symbols(gold) if len(symbol) == 1}
        mixed = sorted(letter for letter in letters if letter.isupper() and letter.lower() in letters)
        if mixed and number(gold) is None and words(gold) is None:
            raise ValueError(
                f"record.answer {gold!r} uses {mixed[0]} and {mixed[0].lower()}: math-verify reads them as one"
            )
        golds.append(gold)
    return golds, question


def _unnamed(gold: str, given: str) -> tuple[str, str]:
    """Both without a leading `x =`. Raises Failed for chains, for claims (3 = 5) and for a name other than gold's."""
    count = len(_EQUALS.findall(given))
    if len(_EQUALS.findall(gold)) > 1 or (count and "," in gold and "=" in gold):
        return gold, given  # a system of equations, compared as a whole by the algebra
    names = [_NAMED.match(text) for text in (gold, given)]
    mine, other = names
    if "=" in gold and mine is None:
        if count != 1:
            raise Failed("wrong", "an equation is asked for")
        return gold, given
    if count and (count > 1 or other is None):
        raise Failed("malformed", "one value, or name = value; this claims more")
    if other is not None:
        if mine is not None and mine[1].replace(" ", "") != other[1].replace(" ", ""):
            raise Failed("wrong", f"{other[1]} is not {mine[1]}")
        given = given[other.end() :]
    return (gold[mine.end() :] if mine is not None else gold), given


def _same_number(gold: tuple[Any, str], given: str) -> Judgement:
    value = number(given)
    if value is None:
        if _OPERATION.search(given):
            return Judgement("fail", "unevaluated", f"{given[:100]} is a computation; a number is asked for")
        return Judgement("fail", "wrong", f"{given[:100]} is not a number")
    if value[1] != gold[1] and not (not gold[1] and known_unit(value[1])) and value[1]:
        return Judgement("fail", "unit", f"{value[1]!r} where the record has {gold[1] or 'no unit'!r}")
    if gold[1] == "%" and value[1] != "%":
        return Judgement("fail", "unit", "the record has a percent sign")
    if value[0] != gold[0]:
        return Judgement("fail", "wrong", f"{given[:100]} is not {gold[0]}")
    return Judgement("pass", "correct")


def _check_symbolic(gold: str, given: str, question: str) -> None:
    """Refuse answers that the algebra would wrongly accept. Raises Failed."""
    unknown = sorted(commands(given) - COMMANDS - commands(gold))
    if unknown:
        raise Failed("unevaluated", f"\\{unknown[0]} is not part of a finished answer to this question")
    if _DERIVATIVE.search(given) and not _DERIVATIVE.search(gold):
        raise Failed("unevaluated", "a derivative that is not computed")
    if bool(_PRIME.search(given)) is not bool(_PRIME.search(gold)):
        raise Failed("wrong", "a prime makes it another function")  # math-verify ignores primes
    known = symbols(gold)
    for symbol in sorted(symbols(given) - known):
        swapped = symbol[:1].swapcase() + symbol[1:]
        if swapped in known or (swapped in symbols(given) and symbol != "e"):
            raise Failed("wrong", f"{symbol} is not {swapped}")
    squeezed = re.sub(r"[\s$]|\\[,;! ]|\\left|\\right", "", question.replace("\\dfrac", "\\frac"))
    plain = re.sub(r"\s", "", given)
    if len(plain) > 2 and _OPERATION.search(given) and plain in squeezed:
        raise Failed("restated", "the question's own expression")


def _members(gold: str, given: str) -> list[tuple[str, str]]:
    """The pairs to compare: the members of an ordered tuple or interval one by one, anything else as a whole.

    Raises Failed if brackets or lengths differ, because math-verify takes (1,2) for {1,2}.
    """
    (gold_brackets, golds), (brackets, members) = parts(gold), parts(given)
    if len(golds) < 2 and (len(members) < 2 or _RELATION.search(gold)):
        return [(gold, given)]  # x > 3 may be answered (3, ∞)
    if gold_brackets != brackets:
        raise Failed("wrong", f"{brackets or 'no'} brackets where the record has {gold_brackets or 'none'}")
    if not gold_brackets:
        return [(gold, given)]
    if len(golds) != len(members):
        raise Failed("wrong", f"{len(members)} members, not {len(golds)}")
    if len(golds) > MAX_MEMBERS:
        raise Failed("too_expensive", f"{len(golds)} members, at most {MAX_MEMBERS}")
    return list(zip(golds, members, strict=True))
