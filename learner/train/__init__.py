"""One optimiser step of the method, and the partition function Z that it needs.

May import broker, learner.ranks, learner.batch, learner.model and learner.objective.
Never asks the broker: learner/service.py fetches the groups and publishes the weights.
"""
