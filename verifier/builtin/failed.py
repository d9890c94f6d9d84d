"""The exception with which the checks of a built-in verifier reject an answer."""

from __future__ import annotations


class Failed(ValueError):
    """The answer is not right; `reason` is one of the verifier's reason codes, `detail` is for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
