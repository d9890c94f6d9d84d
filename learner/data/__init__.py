"""The prompts: rows of files or data sets, rendered and tokenised, and the fingerprint of what must stay the same.

May import broker, and transformers for the tokenizer.
Never loads a model.
"""
