"""Models made by somebody else, read by the libraries: no code of theirs runs, and every failure is one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from broker.errors import SieveError
from broker.settings import DataSettings
from learner.data.prompts import DataUnusable, end_tokens, load_tokenizer, read_prompts
from learner.model.model import ModelUnusable, load
from learner.weights.publish import AdapterUnusable, convert_adapters


def set_in(name: str, **fields: Any) -> Callable[[Path], None]:
    def apply(model: Path) -> None:
        path = model / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return apply


def code(model: Path) -> None:
    """A model class of its own, as the Hub's models have it, which would say that it ran."""
    (model / "modeling_own.py").write_text(f"open({str(model / 'ran')!r}, 'w')")
    set_in("config.json", model_type="own", auto_map={"AutoConfig": "modeling_own.C", "AutoModelForCausalLM": "x.M"})(
        model
    )


BROKEN: dict[str, Callable[[Path], None]] = {
    "its own code": code,
    "an unknown kind": set_in("config.json", model_type="\x1b[2Jown\nline"),
    "a kind that is no text": set_in("config.json", model_type=["llama"]),
    "heads that divide nothing": set_in("config.json", num_attention_heads=3, head_dim=None),
    "more heads of keys than of queries": set_in("config.json", num_key_value_heads=5),
    "another width than the files": set_in("config.json", hidden_size=20),
    "another activation": set_in("config.json", hidden_act="__import__"),
    "a scaling of no kind": set_in("config.json", rope_parameters={"rope_type": "os.system", "rope_theta": -1}),
    "a number in words": set_in("config.json", rms_norm_eps="small"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_is_named_in_one_line_and_runs_nothing(
    model_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question at the terminal"))
    BROKEN[name](model_path)
    with pytest.raises(ModelUnusable) as caught:
        load(model_path, torch.float32)
    assert str(caught.value).isprintable() and not (model_path / "ran").exists()


def test_code_beside_a_model_that_transformers_knows_is_ignored(model_path: Path) -> None:
    """As DeepSeek's and Phi's models come from the Hub: their own files, and a class of transformers for the same."""
    own = model_path / "modeling_own.py"
    own.write_text(f"open({str(model_path / 'ran')!r}, 'w')")
    files = {"AutoConfig": "modeling_own.C", "AutoModelForCausalLM": "modeling_own.M"}
    set_in("config.json", auto_map=files)(model_path)
    set_in("tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_own.T", None]})(model_path)
    assert type(load(model_path, torch.float32)).__module__.startswith("transformers.models.llama")
    assert type(load_tokenizer(model_path)).__module__.startswith("transformers")
    assert not (model_path / "ran").exists()


TOKENIZERS: dict[str, Callable[[Path], None]] = {
    "a class of no tokenizer": set_in("tokenizer_config.json", tokenizer_class="os.system"),
    "another form": set_in("tokenizer.json", model={"type": "BPE", "vocab": -1}),
    "no model": lambda model: (model / "tokenizer.json").write_text("{}"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_broken_tokenizer_is_named_in_one_line(model_path: Path, name: str) -> None:
    TOKENIZERS[name](model_path)
    try:
        tokenizer = load_tokenizer(model_path)
    except DataUnusable as error:
        assert str(error).isprintable()
    else:  # the library takes its own class instead
        assert type(tokenizer).__module__.startswith("transformers")


@pytest.mark.parametrize("tokens", [-1, [1, -2], "x", [None], 1.5, True, 10**9])
def test_tokens_that_end_an_answer_are_tokens_of_the_model(model_path: Path, tokens: Any) -> None:
    tokenizer, config = load_tokenizer(model_path), AutoConfig.from_pretrained(model_path)
    set_in("generation_config.json", eos_token_id=tokens)(model_path)
    with pytest.raises(SieveError, match=r"model\.path"):
        end_tokens(model_path, config, tokenizer)


TEMPLATES = {
    "a module": "{{ cycler.__init__.__globals__.os.system('touch RAN') }}",
    "a class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a method's globals": "{{ raise_exception.__globals__.os }}",
    "a format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "a file": "{% include '/etc/passwd' %}",
    "a change": "{% set _ = messages.append(1) %}",
    "a large range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "no end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "nothing there": "{{ 1 // 0 }}",
    "no template": "{% if",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_template_reaches_nothing_and_fails_in_a_line(
    model_path: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = load_tokenizer(model_path)
    tokenizer.chat_template = TEMPLATES[name]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "w3", "verifier": "even", "record": {}}))
    data = DataSettings.model_validate({"train": prompts, "chat": {"enabled": True}})
    with pytest.raises(DataUnusable, match="the chat template refuses the prompt") as caught:
        read_prompts(prompts, tokenizer, vocabulary=50, longest=10, data=data)
    assert str(caught.value).isprintable() and not (tmp_path / "RAN").exists()


ADAPTERS: dict[str, Any] = {
    "rank of nothing": {"r": 0},
    "a rank without end": {"r": 10**12},
    "a scale without end": {"lora_alpha": 1e300},
    "a pattern": {"target_modules": "(a+)+$"},
    "modules of its own": {"modules_to_save": ["lm_head"]},
    "another kind": {"peft_type": "PROMPT_TUNING"},
}


@pytest.mark.parametrize("name", [*ADAPTERS, "a pipe", "a pipe of tensors"])
def test_an_adapter_is_plain_or_refused(model_path: Path, tmp_path: Path, name: str) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    plain = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "base_model_name_or_path": "../../../etc"}
    (adapter / "adapter_config.json").write_text(json.dumps(plain | ADAPTERS.get(name, {})))
    if name == "a pipe":
        (adapter / "adapter_config.json").unlink()
        os.mkfifo(adapter / "adapter_config.json")
    elif name == "a pipe of tensors":
        os.mkfifo(adapter / "adapter_model.safetensors")
    with pytest.raises(AdapterUnusable, match="not an adapter for the model") as caught:
        convert_adapters(adapter, tmp_path / "out", model_path, torch.float32)
    assert str(caught.value).isprintable() and not (tmp_path / "out").exists()
