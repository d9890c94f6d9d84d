"""Evaluation on the prompts of data.eval: statistics of samples, collection of finished groups, result files.

May import broker and learner.difficulty.
Never imports torch: reports and `sieve eval` read these statistics without it.
"""
