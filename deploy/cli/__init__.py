"""The command `sieve`: arguments and options, one call into another folder, an exit code.

May import everything in deploy but deploy.api, inside the command that needs it.
Never holds logic that a Python caller would miss.
"""
