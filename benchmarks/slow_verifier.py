"""A verifier with a given latency, like one that waits for a prover or a sandbox, and exact judgements."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from verifier.builtin.arithmetic import Arithmetic
from verifier.protocol import Judgement


class SlowArithmetic(Arithmetic):
    """The verifier `arithmetic`, which sleeps for `seconds` before each judgement."""

    def __init__(self, seconds: float) -> None:
        if not 0 <= seconds <= 60:
            raise ValueError(f"seconds = {seconds}: must be between 0 and 60")
        self.seconds = seconds

    def judge(self, record: Mapping[str, Any], answer: str) -> Judgement:
        """The exact judgement, after the wait."""
        time.sleep(self.seconds)
        return super().judge(record, answer)
