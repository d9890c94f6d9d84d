"""The tokenizer at model.path, with which engines turn token ids into the text of answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from actor.engine import ModelUnusable
from broker.model_files import problem_of

Decode = Callable[[list[list[int]]], list[str]]
"""A function from the token ids of several answers, end tokens included, to their texts without special tokens."""


def vocabulary(path: Path) -> int:
    """The vocabulary size of the model in the directory `path`. Raises ModelUnusable if its config cannot be read."""
    from transformers import AutoConfig

    if problem := problem_of(path):
        raise ModelUnusable(problem)
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        return int(config.get_text_config().vocab_size)
    except Exception as error:  # of a foreign library about foreign files
        raise ModelUnusable(f"model.path = {path}: not a Hugging Face model directory ({error})") from error


def open_tokenizer(path: Path, vocabulary: int) -> Decode:
    """The decoding function of the tokenizer in the directory `path`; nothing is fetched from a network.

    Raises ModelUnusable if the tokenizer cannot be read or has ids beyond the model's `vocabulary`."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of a foreign library about foreign files
        raise ModelUnusable(
            f"model.path = {path}: not a Hugging Face model directory with a tokenizer ({error})"
        ) from error
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocabulary:
        raise ModelUnusable(
            f"model.path = {path}: the tokenizer has token id {largest}, the model only {vocabulary} tokens; use the "
            "tokenizer of this model"
        )

    def decode(rows: list[list[int]]) -> list[str]:
        return list(tokenizer.batch_decode(rows, skip_special_tokens=True))

    return decode
