"""The engine `actor.engine: vllm`: vLLM, with weights that change while it generates.

May import vllm, except in settings and arguments, which are read without it.
Never imports another engine.
"""
