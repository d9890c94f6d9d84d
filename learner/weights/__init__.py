"""From the learner's shards to what actors load: published files, broadcasts, and the canaries of each version.

May import broker, learner.ranks, learner.batch and learner.model.
Never trains.
"""
