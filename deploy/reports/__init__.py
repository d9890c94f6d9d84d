"""Results of runs, from their files: the report of one run, and statistics of its evaluations.

May import deploy.config, deploy.rundir and what learner records and estimates (step_record, difficulty, evaluation.stats).
Never asks the broker.
"""
