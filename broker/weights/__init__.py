"""Versions of the policy's weights: stores with manifests, deltas and caches; coordination of broadcasts; canaries.

May import broker.errors, broker.settings and broker.queue.
Never imports torch: tensors are bytes with a name, a dtype and a shape here.
"""
