"""Benchmark of one verdict on a program by level of confinement, against a bare interpreter.

    python -m benchmarks.sandbox [--rounds 60] [--python /usr/bin/python3]

One verdict starts a fresh interpreter in the sandbox, sends two calls, compares, ends it and cleans up. The sides take
turns. `added` is the cost of confining, asking and judging: the median over the rounds of the verdict's time less that
of the same round's bare interpreter, which imports the modules of the runner. Aim: at most 20 ms.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import alternate
from verifier.builtin.python.verifier import PythonCode
from verifier.sandbox.limits import LEVELS, SandboxUnavailable

RECORD = {"entry": "add", "tests": [{"call": [1, 2], "expected": 3}, {"call": [5, 6], "expected": 11}]}
ANSWER = "```python\ndef add(a, b):\n    return a + b\n```"
AIM_SECONDS = 0.020


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--python", default="/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable)
    arguments = parser.parse_args()
    rounds, interpreter = arguments.rounds, arguments.python
    verifiers: dict[str, PythonCode] = {}
    for level in (*LEVELS, "unsafe"):
        try:
            verifiers[level] = PythonCode(sandbox={"level": level}, interpreter=interpreter)
        except SandboxUnavailable as error:
            print(f"{level}: not available: {error}")

    def judge(verifier: PythonCode) -> Callable[[], float]:
        def one() -> float:
            found = None

            def work() -> None:
                nonlocal found
                found = verifier.judge(RECORD, ANSWER)

            took = seconds(work)
            if found is None or found.outcome != "pass":
                raise RuntimeError(f"the honest program got {found}")
            return took

        return one

    bare = [interpreter, "-I", "-S", "-B", "-c", "import json, os, sys, types"]
    sides: dict[str, Callable[[], float]] = {
        "bare interpreter": lambda: seconds(lambda: subprocess.run(bare, check=True)),
        **{level: judge(verifier) for level, verifier in verifiers.items()},
    }
    seen = alternate(sides, rounds)
    print(f"{rounds} rounds, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {interpreter}")
    print(f"{'':<18}{'median':>10}{'fastest':>10}{'p90':>10}{'added':>10}")
    for name, values in seen.items():
        ranked = sorted(values)
        added = statistics.median(mine - bare for mine, bare in zip(values, seen["bare interpreter"], strict=True))
        shown = (statistics.median(ranked), ranked[0], ranked[int(0.9 * (len(ranked) - 1))], added)
        line = "".join(f"{1e3 * value:8.1f}ms" for value in shown)
        judged = (
            ""
            if name == "bare interpreter"
            else "  met"
            if added <= AIM_SECONDS
            else f"  over {1e3 * AIM_SECONDS:.0f} ms"
        )
        print(f"{name:<18}{line}{judged}")
    for verifier in verifiers.values():
        verifier.close()


if __name__ == "__main__":
    main()
