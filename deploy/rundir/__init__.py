"""The run directory: its lock, and its files read back.

May import broker and deploy.config.
Never asks the broker: what a run wrote must be readable after its Redis is gone.
"""
