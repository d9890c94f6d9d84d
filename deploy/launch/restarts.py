"""The restart policy: whether a service that ended is started again, and after which pause. A pure function of time.

    exit code                         decision
    64 (wrong setting)                give up: it stays wrong
    76 (weights differ)               give up: a new learner would find the same sampler
    69 (unavailable), 75 (temporary)  restart, at most launch.restart_limit times in a row
    any other                         restart once; give up the second time in a row
    none (killed)                     restart; the limit applies only if the service never got past its set-up

A verifier that got past its set-up is always restarted, without a growing pause: an answer can end it with any code,
and after broker.verify_attempts deliveries the queue gives up on that answer.

Failures are "in a row" until a service has run for launch.healthy_seconds. The pause doubles with each of them, up to
LONGEST_PAUSE.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.errors import EX_MISMATCH, EX_TEMPORARY, EX_UNAVAILABLE, EX_USAGE
from deploy.config.settings import LaunchSettings

LONGEST_PAUSE = 30.0
"""In seconds."""
KILLED = -1
"""In place of the exit code of a process that was killed."""
TEMPORARY = (EX_UNAVAILABLE, EX_TEMPORARY)
AT_ONCE = (EX_USAGE, EX_MISMATCH)


@dataclass
class Restarts:
    """The failures of one service so far, and the decision after each."""

    settings: LaunchSettings
    expendable: bool = False
    """Whether what the service works on can end it: true of verifiers."""
    row: int = 0
    """Failures in a row."""
    reasons: dict[str, int] = field(default_factory=dict)
    """How often it was started again, by reason."""

    def ended(self, code: int, lived: float, worked: bool) -> float | None:
        """Count one failure. Returns the pause in seconds before the restart, or None to give up.

        `code` is the exit code or KILLED, `lived` the seconds since its start, `worked` whether it got past its set-up.
        """
        self.row = 1 if lived >= self.settings.healthy_seconds else self.row + 1
        reason = "killed" if code == KILLED else f"exit {code}"
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        if self.expendable and worked:
            return self.settings.restart_seconds
        if code == KILLED:
            hopeless = not worked and self.row > self.settings.restart_limit
        elif code in TEMPORARY:
            hopeless = self.row > self.settings.restart_limit
        else:
            hopeless = code in AT_ONCE or self.row >= 2
        if hopeless:
            return None
        return min(self.settings.restart_seconds * 2.0 ** (self.row - 1), LONGEST_PAUSE)
