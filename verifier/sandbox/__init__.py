"""Confined execution of untrusted programs. Stdlib only: the spawner starts from here, without site-packages."""

from verifier.sandbox.limits import LADDER, Level, Limits, Outcome, SandboxTrouble, SandboxUnavailable, Starved
from verifier.sandbox.running import Running
from verifier.sandbox.sandbox import Sandbox

__all__ = [
    "LADDER",
    "Level",
    "Limits",
    "Outcome",
    "Running",
    "Sandbox",
    "SandboxTrouble",
    "SandboxUnavailable",
    "Starved",
]
