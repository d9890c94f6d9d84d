"""Policy and base: loaded, sharded, adapted, scored, saved and restored.

May import broker, learner.ranks, learner.data and learner.batch.
Never imports an objective.
"""
