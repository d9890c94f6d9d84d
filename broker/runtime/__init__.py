"""The base of every service: start, heartbeat, metrics endpoints, drain and exit code; and the private Redis server.

May import broker.errors, broker.settings and broker.queue.
Never knows which role runs on it.
"""
