"""Versions of the policy's weights outside Redis: on disk with manifests, deltas and caches; broadcasts; canaries.

May import broker.errors, broker.settings and broker.queue.
Never imports torch: tensors are bytes with a name, a dtype and a shape here.
"""
