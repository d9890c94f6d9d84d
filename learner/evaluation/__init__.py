"""Evaluation on held-out prompts: statistics of samples, requests through the eval lane, result files.

May import broker and learner.difficulty.
Never imports torch: reports and `sieve eval` read these statistics without it.
"""
