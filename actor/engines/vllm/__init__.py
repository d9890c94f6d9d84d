"""`actor.engine: vllm`: vLLM in this process or its own, with weights that change while it generates.

May import vllm; settings and arguments are read without it.
Never imports another engine.
"""
