"""Verifiers: decide pass, fail or error about one completion, and the service that feeds them.

May import broker; inside: sandbox < builtin, protocol < builtin; the service reaches built-ins by name only.
Never imports torch, vllm, ray, actor or learner.
"""
