r"""The program that compares final answers with math-verify, in a process that may be killed at any moment.

Each line of input is a JSON object, `{"gold": latex, "answer": latex, "seconds": float}`. The output for it is two
lines: `{"gold": bool}` as soon as the record's answer has been read (so that a later death can be attributed to the
answer), then `{"equal": bool}` or `{"unreadable": true}`, with `spoilt` if memory ran short. A CPU timer kills this
process when one answer has used `seconds` of computing: the kernel does it, in the middle of any C loop, and waiting on
a busy machine does not count. The program ends when its input does. It is started as a file and imports nothing of the
project.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from functools import lru_cache
from typing import Any

DIGITS = 60
"""Decimal digits of numerical comparisons: no fraction with as many digits as an answer may have is that close to a
root."""


def main() -> None:
    """Compare the answers on stdin until it ends; the argument is the limit of the address space in bytes."""
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # keep what a library prints apart from the answers
    logging.disable(logging.CRITICAL)
    from math_verify import LatexExtractionConfig, parse, verify
    from sympy import Basic, nan, zoo

    config = [LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)]

    def read(latex: str) -> list[Any]:
        # math-verify's own timers are off (they need SIGALRM and the main thread); compare() sets ours.
        return list(
            parse(
                f"\\boxed{{{latex}}}",
                config,
                fallback_mode="no_fallback",
                extraction_mode="first_match",
                parsing_timeout=None,
            )
        )

    def defined(value: Any) -> bool:
        # x + 0/0 could be simplified to anything; an undefined part makes the whole undefined.
        return not isinstance(value, Basic) or not value.doit().has(zoo, nan)

    @lru_cache(maxsize=64)  # the completions of a group share the record's answer
    def read_gold(latex: str) -> list[Any]:
        gold = read(latex)
        return gold if all(map(defined, gold)) else []

    def spoilt() -> bool:
        """Whether memory ever ran short in this process: what was read or compared since cannot be trusted."""
        with open("/proc/self/status", encoding="ascii") as status:
            peak = next(int(line.split()[1]) for line in status if line.startswith("VmPeak"))
        return peak * 1024 > 0.9 * memory

    def say(**body: bool) -> None:
        out.write(json.dumps(body) + "\n")
        out.flush()

    def compare(job: dict[str, Any]) -> None:
        signal.setitimer(signal.ITIMER_PROF, float(job["seconds"]))
        gold = read_gold(job["gold"])
        say(gold=bool(gold))
        if gold:
            answer = read(job["answer"])
            # Gold first: the comparison is not symmetric, and is more lenient the other way round.
            equal = (
                bool(answer)
                and all(map(defined, answer))
                and verify(
                    gold,
                    answer,
                    float_rounding=DIGITS - 20,
                    numeric_precision=DIGITS,
                    strict=True,
                    timeout_seconds=None,
                )
            )
            signal.setitimer(signal.ITIMER_PROF, 0)
            say(**({"equal": bool(equal)} if answer else {"unreadable": True}), spoilt=spoilt())
        signal.setitimer(signal.ITIMER_PROF, 0)

    # The first comparisons import modules and build tables, which must not be charged to an answer.
    for one, other in ((r"\frac{x^2-1}{x-1}", "x+1"), (r"\sqrt{8}", r"2\sqrt{2}"), ("[1,2)", "(1,2)"), ("x>3", "y=2x")):
        verify(read(one), read(other), timeout_seconds=None)
    say(ready=True)
    for line in sys.stdin:
        try:
            compare(json.loads(line))
        except MemoryError:
            say(spoilt=True)
            say(spoilt=True)  # twice, since one or two lines may still be awaited
            return


if __name__ == "__main__":
    main()
