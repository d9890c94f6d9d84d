"""The verifier `lean`: Lean 4 proofs, of which only the tactic block is taken from the answer.

May import what every built-in may.
Never passes a proof just because Lean printed no error: the finding of checker.lean decides.
"""
