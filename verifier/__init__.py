"""Verifiers, which judge completions as pass, fail or error, and the service that runs them.

May import broker; inside: sandbox < builtin, protocol < builtin; the service reaches built-ins by name only.
Never imports torch, vllm, ray, actor or learner.
"""
