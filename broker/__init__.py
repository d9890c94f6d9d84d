"""The meeting place: wire types, the state machine on Redis, liveness, and the base every service stands on.

Never imports torch, vllm or ray: a verifier pod and `sieve --help` start in well under a second.
"""
