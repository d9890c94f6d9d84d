"""Lean 4 proofs: only the tactic block is the model's, and Lean itself says what was declared and on which axioms."""

from verifier.lean.doctor import check
from verifier.lean.settings import LeanSettings
from verifier.lean.verifier import Lean

__all__ = ["Lean", "LeanSettings", "check"]
