"""Tokenised prompts, made from the rows that rows.py reads and maps. A prompt's index is its position among the rows.

Every error names the file, the row and the field, and what to change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from transformers import AutoTokenizer, GenerationConfig

from broker.queue.wire import Prompt, int32
from broker.settings import ChatSettings, DataSettings, PromptSource
from learner.data.rows import FIELDS, DataUnusable, Row, rows

__all__ = ["DataUnusable", "end_tokens", "load_tokenizer", "read_prompts"]


def read_prompts(
    source: PromptSource, tokenizer: Any, *, vocabulary: int, longest: int, data: DataSettings | None = None
) -> list[Prompt]:
    """All prompts of one source. `longest`: most prompt tokens that leave room for the answer. Raises DataUnusable.

    `vocabulary` is the model's: a token id outside it means that model and tokenizer do not belong together. `data`
    says how rows are mapped and whether the chat template is applied; without it a row is taken as it stands.
    """
    data = data or DataSettings(train=source)
    found = list(rows(source, data))
    if not found:
        raise DataUnusable(f"{source}: no prompts; expected one JSON object a line with {', '.join(FIELDS)}")
    texts = [_text(row, tokenizer, data.chat) for row in found]
    # A chat template writes the special tokens itself; a second beginning of text would be off-distribution.
    encoded = tokenizer(texts, add_special_tokens=not data.chat.enabled)["input_ids"]
    prompts: list[Prompt] = []
    for row, text, ids in zip(found, texts, encoded, strict=True):
        where = row.where
        if not ids:
            raise DataUnusable(f"{where}: prompt: no tokens; the text is empty to the tokenizer: remove the line")
        if len(ids) > longest:
            raise DataUnusable(
                f"{where}: prompt: {len(ids)} tokens > {longest}, the model's context less sampling.max_new_tokens: "
                "shorten or remove the line, or lower sampling.max_new_tokens"
            )
        if max(ids) >= vocabulary:
            raise DataUnusable(
                f"{where}: prompt: token id {max(ids)} ≥ the model's vocabulary of {vocabulary}: the tokenizer in "
                "model.path belongs to another model; copy the matching tokenizer files there"
            )
        try:
            prompt = Prompt(index=len(prompts), text=text, tokens=int32(ids), verifier=row.verifier, record=row.record)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise DataUnusable(f"{where}: {field} = {str(first['input'])[:60]!r}: {first['msg']}") from None
        prompts.append(prompt)
    return prompts


def _text(row: Row, tokenizer: Any, chat: ChatSettings) -> str:
    """What the model reads: the prompt as it stands, or in the tokenizer's chat template."""
    if not chat.enabled:
        assert isinstance(row.prompt, str)  # rows() refuses messages without a template
        return row.prompt
    if not getattr(tokenizer, "chat_template", None):
        raise DataUnusable(
            "data.chat.enabled = true: the tokenizer in model.path has no chat template; copy the model's "
            "chat_template.jinja there, or set data.chat.enabled = false"
        )
    messages = [{"role": "user", "content": row.prompt}] if isinstance(row.prompt, str) else list(row.prompt)
    if chat.system is not None:
        if messages and messages[0]["role"] == "system":
            raise DataUnusable(f"{row.where}: prompt begins with a system message; remove data.chat.system")
        messages.insert(0, {"role": "system", "content": chat.system})
    try:
        # Transformers renders in a sandbox of Jinja's, where a template reaches neither modules nor files.
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **chat.options))
    except Exception as error:  # a template is a program: it can fail in any way
        raise DataUnusable(
            f"{row.where}: the chat template refuses the prompt ({error}); correct the messages or data.chat"
        ) from None


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in the model directory. Raises DataUnusable."""
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of a foreign library about foreign files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataUnusable(
            f"model.path = {path}: no usable tokenizer ({reason}): copy tokenizer.json and tokenizer_config.json there"
        ) from error


def end_tokens(path: Path, model_config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Token ids that end an answer: of generation_config.json, else config.json, else the tokenizer.

    Raises DataUnusable.
    """
    found: Any = None
    if (path / "generation_config.json").is_file():
        try:
            found = GenerationConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False).eos_token_id
        except Exception as error:  # of a foreign library about foreign files
            raise DataUnusable(
                f"model.path = {path}: generation_config.json cannot be used ({error}): copy the model again"
            ) from None
    for other in (getattr(model_config, "eos_token_id", None), tokenizer.eos_token_id):
        found = other if found is None else found
    if isinstance(found, torch.Tensor):
        found = found.tolist()
    ids = tuple(found) if isinstance(found, (list, tuple)) else () if found is None else (found,)
    if not ids:
        raise DataUnusable(
            f"model.path = {path}: no eos_token_id in generation_config.json, config.json or the tokenizer"
        )
    if not all(type(one) is int and one >= 0 for one in ids):
        raise DataUnusable(f"model.path = {path}: eos_token_id = {str(found)[:80]}: must be token ids, from 0")
    if max(ids) >= int(model_config.vocab_size):
        raise DataUnusable(
            f"model.path = {path}: eos_token_id {max(ids)} ≥ the model's vocabulary of {model_config.vocab_size}: the "
            "tokenizer belongs to another model; copy the matching tokenizer files there"
        )
    return ids
