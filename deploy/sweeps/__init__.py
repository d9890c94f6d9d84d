"""Comparisons: `sieve sweep`, many runs from one configuration, and `sieve eval`, a checkpoint beside the base model.

May import everything in deploy but deploy.cli and deploy.api.
Never trains by itself: each point of a sweep is an ordinary run.
"""
