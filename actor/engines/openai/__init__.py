"""The engine `actor.engine: openai`: a vLLM server that runs elsewhere, over HTTP.

May import aiohttp; settings are read without it.
Never imports another engine.
"""
