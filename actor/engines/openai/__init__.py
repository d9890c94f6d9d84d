"""`actor.engine: openai`: a vLLM server somewhere else as the engine, over HTTP.

May import aiohttp; settings are read without it.
Never imports another engine.
"""
