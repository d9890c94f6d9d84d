"""The engine `actor.engine: torch`: a transformers model with continuous batching, on any device of torch.

May import torch and transformers.
Never imports another engine.
"""
