"""How the learner's weights reach actors: publishing versions, broadcasts, and the canary of each version.

May import broker, learner.ranks, learner.batch and learner.model.
Never trains.
"""
