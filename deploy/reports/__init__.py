"""Results of runs, from their files: the report of one run, and statistics of its evaluations.

May import deploy.config, deploy.rundir, and step_record, difficulty and evaluation.stats of learner.
Never asks the broker.
"""
