"""Prompts from JSONL files, tokenised once. An error names the file, the line and the field, and what to change.

One JSON object a line: `prompt` (text), `verifier` (name) and `record` (an object for the verifier). Blank lines are
skipped; a prompt's index is its place among the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from transformers import AutoTokenizer, GenerationConfig

from broker.errors import EX_DATA, SieveError
from broker.wire import Prompt, int32

FIELDS = {"prompt": str, "verifier": str, "record": dict}


class DataUnusable(SieveError):
    """A prompt file cannot be used as it is."""

    exit_code = EX_DATA


def read_prompts(path: Path, tokenizer: Any, *, vocabulary: int, longest: int) -> list[Prompt]:
    """All prompts of one file. `longest`: most prompt tokens that leave room for the answer. Raises DataUnusable.

    `vocabulary` is the model's: a token id outside it means that model and tokenizer do not belong together.
    """
    lines = list(_lines(path))
    if not lines:
        raise DataUnusable(f"{path}: no prompts; expected one JSON object a line with {', '.join(FIELDS)}")
    encoded = tokenizer([body["prompt"] for _, body in lines])["input_ids"]
    prompts: list[Prompt] = []
    for (number, body), ids in zip(lines, encoded, strict=True):
        where = f"{path}:{number}"
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
            prompt = Prompt(
                index=len(prompts),
                text=body["prompt"],
                tokens=int32(ids),
                verifier=body["verifier"],
                record=body["record"],
            )
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise DataUnusable(f"{where}: {field} = {str(first['input'])[:60]!r}: {first['msg']}") from None
        prompts.append(prompt)
    return prompts


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) with the three fields present and of the right kind."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataUnusable(f"{path}: no such file; set data.train and data.held_out to JSONL prompt files") from None
    except UnicodeDecodeError as error:
        raise DataUnusable(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except OSError as error:
        raise DataUnusable(f"{path}: {error.strerror}; give a readable file") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            body = json.loads(line)
        except ValueError as error:
            raise DataUnusable(f"{path}:{number}: not JSON ({error}); write one object a line") from None
        if not isinstance(body, dict):
            raise DataUnusable(f"{path}:{number}: {type(body).__name__}, expected an object with {', '.join(FIELDS)}")
        for field, kind in FIELDS.items():
            if field not in body:
                raise DataUnusable(
                    f"{path}:{number}: field {field!r} is missing; found {', '.join(sorted(body)) or 'none'}"
                )
            if not isinstance(body[field], kind):
                raise DataUnusable(
                    f"{path}:{number}: field {field!r} is {type(body[field]).__name__}, expected "
                    f"{'text' if kind is str else 'an object'}"
                )
        yield number, body


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in the model directory. Raises DataUnusable."""
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
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
        found = GenerationConfig.from_pretrained(path, local_files_only=True).eos_token_id
    for other in (getattr(model_config, "eos_token_id", None), tokenizer.eos_token_id):
        found = other if found is None else found
    if isinstance(found, torch.Tensor):
        found = found.tolist()
    ids = tuple(found) if isinstance(found, (list, tuple)) else () if found is None else (int(found),)
    if not ids:
        raise DataUnusable(
            f"model.path = {path}: no eos_token_id in generation_config.json, config.json or the tokenizer"
        )
    if max(ids) >= int(model_config.vocab_size):
        raise DataUnusable(
            f"model.path = {path}: eos_token_id {max(ids)} ≥ the model's vocabulary of {model_config.vocab_size}: the "
            "tokenizer belongs to another model; copy the matching tokenizer files there"
        )
    return ids
