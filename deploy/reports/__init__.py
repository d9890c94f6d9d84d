"""The report of one run: figures from its files, plots, statistics of its evaluations.

May import deploy.config, deploy.rundir and learner.evaluation.
Never asks the broker.
"""
