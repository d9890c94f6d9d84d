"""The verifier `python`: programs judged by running them on tests.

May import what every built-in may.
Never runs an answer outside the sandbox.
"""
