"""Results of runs, from their files: the report of one run, and statistics of its evaluations.

May import deploy.config, deploy.rundir and learner.evaluation.
Never asks the broker.
"""
