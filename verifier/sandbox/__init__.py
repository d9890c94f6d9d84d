"""Confined execution of untrusted programs. Stdlib only: the spawner starts from here, without site-packages."""

from verifier.sandbox.limits import LADDER, Level, Limits, Outcome, SandboxTrouble, SandboxUnavailable
from verifier.sandbox.sandbox import Running, Sandbox

__all__ = ["LADDER", "Level", "Limits", "Outcome", "Running", "Sandbox", "SandboxTrouble", "SandboxUnavailable"]
