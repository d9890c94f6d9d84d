"""The tokenizer at model.path, with which engines turn token ids into the text of answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from actor.engine import ModelUnusable

Decode = Callable[[list[list[int]]], list[str]]
"""A function from the token ids of several answers, end tokens included, to their texts without special tokens."""


def vocabulary(path: Path) -> int:
    """The vocabulary size of the model in the directory `path`. Raises ModelUnusable if its config cannot be read."""
    from transformers import AutoConfig

    try:
        return int(AutoConfig.from_pretrained(path, local_files_only=True).get_text_config().vocab_size)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelUnusable(f"model.path = {path}: not a Hugging Face model directory ({error})") from error


def open_tokenizer(path: Path, vocabulary: int) -> Decode:
    """The decoding function of the tokenizer in the directory `path`; nothing is fetched from a network.

    Raises ModelUnusable if the tokenizer cannot be read or has ids beyond the model's `vocabulary`."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
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
