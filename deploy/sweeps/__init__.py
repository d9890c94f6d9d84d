"""`sieve sweep` and `sieve eval`: many runs from one configuration, and what they show side by side.

May import everything in deploy but the command line.
Never trains by itself: each point of a sweep is an ordinary run.
"""
