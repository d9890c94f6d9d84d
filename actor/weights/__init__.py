"""How an actor gets new weights, whatever engine it has: fetching files, checking them, broadcasts, canaries.

May import broker, actor.engine and actor.metrics.
Never imports an engine.
"""
