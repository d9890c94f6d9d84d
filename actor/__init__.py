"""Actors, which take tickets, sample completions from the newest weights and offer them to the verifiers.

May import broker; inside: engine, metrics < weights < engines/X (no X from Y) < settings < engines/factory < service.
Never imports learner or verifier; torch, vllm and aiohttp only inside the engine that needs them.
"""
