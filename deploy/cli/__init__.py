"""The `sieve` command: arguments in, one function of another folder called, exit codes out.

May import everything in deploy, inside the command that needs it.
Never holds logic that a Python caller would miss.
"""
