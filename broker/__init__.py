"""The broker: settings and errors that every package shares, the protocol on Redis, weights on disk, the service base.

May import redis, msgpack, pydantic and numpy; inside: errors, settings < queue < weights, runtime.
Never imports torch, vllm, ray or another package of sieve: a verifier starts in well under a second.
"""
