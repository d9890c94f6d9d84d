"""How an actor gets new weights, for every engine: fetching and checking versions, broadcasts, canaries.

May import broker, actor.engine and actor.metrics.
Never imports an engine.
"""
