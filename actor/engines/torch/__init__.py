"""`actor.engine: torch`: a transformers model with continuous batching, on anything that torch runs on.

May import torch and transformers.
Never imports another engine.
"""
