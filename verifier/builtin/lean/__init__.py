"""`lean`: Lean 4 proofs. Only the tactic block is the model's; Lean itself says what was declared and on which axioms.

May import what every built-in may.
Never takes a proof for right because Lean printed no error: the checker's own finding decides.
"""
