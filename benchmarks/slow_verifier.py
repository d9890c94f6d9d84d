"""A verifier that takes its time: waits, as one does that asks a prover or a sandbox, then judges exactly."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from verifier.builtin.arithmetic import Arithmetic
from verifier.protocol import Judgement


class SlowArithmetic(Arithmetic):
    """`arithmetic` after a wait of `seconds`, in which the process computes nothing."""

    def __init__(self, seconds: float) -> None:
        if not 0 <= seconds <= 60:
            raise ValueError(f"seconds = {seconds}: give 0 to 60")
        self.seconds = seconds

    def judge(self, record: Mapping[str, Any], answer: str) -> Judgement:
        """The exact judgement, late."""
        time.sleep(self.seconds)
        return super().judge(record, answer)
