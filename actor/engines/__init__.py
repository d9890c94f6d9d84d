"""The engines, one folder each, the tokenizer they share, and the factory that opens the one a configuration names.

An engine may import broker, actor.engine, actor.metrics and actor.weights; only the factory imports all engines.
An engine never imports another engine or the service.
"""
