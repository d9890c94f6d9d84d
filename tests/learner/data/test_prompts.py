"""Prompt files: what is read, and what an error names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from learner.data.prompts import DataUnusable, end_tokens, load_tokenizer, read_prompts
from tests.learner.learner_rig import EOS, VOCABULARY

GOOD: dict[str, Any] = {"prompt": "w3 w4", "verifier": "even", "record": {"target": 24}}


def read(path: Path, model: Path, longest: int = 10, vocabulary: int = VOCABULARY) -> Any:
    return read_prompts(path, load_tokenizer(model), vocabulary=vocabulary, longest=longest)


def test_prompts_are_numbered_and_tokenised(tmp_path: Path, model_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD | {"prompt": "w5"}) + "\n")
    first, second = read(file, model_path)
    assert (first.index, second.index) == (0, 1)
    assert first.tokens == b"\x03\0\0\0\x04\0\0\0" and second.record == {"target": 24}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "p.jsonl:2: not JSON"),
        ("[1]", "p.jsonl:2: list, expected an object"),
        (json.dumps({"prompt": "w3", "record": {}}), "p.jsonl:2: field 'verifier' is missing; found prompt, record"),
        (json.dumps(GOOD | {"record": 3}), "p.jsonl:2: field 'record' is int, expected an object"),
        (json.dumps(GOOD | {"verifier": "Bad Name"}), "p.jsonl:2: verifier = 'Bad Name'"),
        (json.dumps(GOOD | {"prompt": ""}), "p.jsonl:2: prompt: no tokens"),
        (json.dumps(GOOD | {"prompt": "w3 " * 11}), "p.jsonl:2: prompt: 11 tokens > 10"),
        (json.dumps(GOOD | {"prompt": "w23"}), "p.jsonl:2: prompt: token id 23 ≥ the model's vocabulary of 20"),
    ],
)
def test_an_error_names_file_line_and_field(tmp_path: Path, model_path: Path, line: str, message: str) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(DataUnusable) as caught:
        read(file, model_path, vocabulary=20)
    assert message in str(caught.value)


def test_missing_empty_and_binary_files_are_named(tmp_path: Path, model_path: Path) -> None:
    for name, data, message in (
        ("none", None, "no such file"),
        ("empty", b"\n", "no prompts"),
        ("binary", b"\xff\xfe", "not UTF-8 at byte 0"),
    ):
        file = tmp_path / name
        if data is not None:
            file.write_bytes(data)
        with pytest.raises(DataUnusable, match=message):
            read(file, model_path)


def test_a_directory_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataUnusable, match="no usable tokenizer"):
        load_tokenizer(tmp_path)


def test_end_tokens_come_from_the_generation_configuration_first(model_path: Path) -> None:
    tokenizer, config = load_tokenizer(model_path), AutoConfig.from_pretrained(model_path)
    assert end_tokens(model_path, config, tokenizer) == (EOS,)
    (model_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    assert end_tokens(model_path, config, tokenizer) == (1, 2)
    (model_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 99}))
    with pytest.raises(DataUnusable, match="eos_token_id 99"):
        end_tokens(model_path, config, tokenizer)
