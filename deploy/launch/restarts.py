"""When a service that ended is started again, and when the run gives up instead. Pure: time comes in as an argument.

    usage (64)                       a wrong setting stays wrong: give up at once
    mismatch (76)                    a new learner would find the same sampler: give up at once
    other lasting codes (65–78)      the second time in a row: give up, with the service's own line
    unavailable (69), temporary (75) start again, at most `restart_limit` times in a row
    killed (no exit code)            start again; counts toward the limit only if it never got to work

"In a row" ends when a service has lived `healthy_seconds`. The pause doubles with each failure in a row, up to 30 s.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.errors import EX_MISMATCH, EX_TEMPORARY, EX_UNAVAILABLE, EX_USAGE
from deploy.config.settings import LaunchSettings

LONGEST_PAUSE = 30.0
KILLED = -1
"""Stands for the exit code of a process that was killed."""
TEMPORARY = (EX_UNAVAILABLE, EX_TEMPORARY)
AT_ONCE = (EX_USAGE, EX_MISMATCH)


@dataclass
class Restarts:
    """What one service has been through."""

    settings: LaunchSettings
    row: int = 0
    """Failures in a row."""
    reasons: dict[str, int] = field(default_factory=dict)
    """How often it was started again, by reason."""

    def ended(self, code: int, lived: float, worked: bool) -> float | None:
        """The pause in seconds before it is started again; None: give up.

        `code` is its exit code or KILLED, `lived` the seconds since its start, `worked` whether it got past its set-up.
        """
        self.row = 1 if lived >= self.settings.healthy_seconds else self.row + 1
        reason = "killed" if code == KILLED else f"exit {code}"
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if code == KILLED:
            hopeless = not worked and self.row > self.settings.restart_limit
        elif code in TEMPORARY:
            hopeless = self.row > self.settings.restart_limit
        else:
            hopeless = code in AT_ONCE or self.row >= 2
        if hopeless:
            return None
        return min(self.settings.restart_seconds * 2.0 ** (self.row - 1), LONGEST_PAUSE)
