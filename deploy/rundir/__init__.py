"""The run directory: its lock, its schema number, and what a run wrote into it, read back.

May import broker, learner.step_record, learner.resumption and deploy.config.
Never asks the broker: what a run wrote must be readable after its Redis is gone.
"""
