"""Leased groups as arrays, and their completions packed into micro-batches.

May import broker, learner.ranks and learner.data.
Never computes a model's output.
"""
