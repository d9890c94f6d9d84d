"""Which arguments of vLLM's engine pass, without vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from actor.engines.vllm.harmless import HARMLESS, is_harmless
from actor.engines.vllm.patience import Patience
from actor.engines.vllm.settings import VllmSettings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_model_length": 64}, r"max_model_length is not known .* did you mean max_model_len\?"),
        (
            {"load_format": "dummy"},
            r"load_format = 'dummy' \(harmless: auto, .*safetensors\) is not known to leave the",
        ),
        ({"compilation_config": {"mode": 3, "backend": "x.y"}}, r"compilation_config with backend \(harmless: cache_d"),
        ({"compilation_config": 3}, "compilation_config with 3"),
        ({"optimization_level": True}, "optimization_level = True"),
        ({"an_argument_of_a_later_vllm": 1}, "an_argument_of_a_later_vllm is not known"),
    ],
)
def test_what_is_not_known_to_be_harmless_is_refused_with_the_remedy(arguments, message):
    with pytest.raises(ValidationError, match=message) as refused:
        VllmSettings(arguments=arguments)
    assert "move it to actor.vllm.unsafe_arguments" in str(refused.value)


def test_harmless_arguments_pass_and_are_not_taken_for_unsafe():
    arguments = {
        "tensor_parallel_size": 2,
        "max_model_len": 4096,
        "load_format": "safetensors",
        "optimization_level": 3,
        "compilation_config": {"mode": 3, "cudagraph_mode": "FULL"},
    }
    assert VllmSettings(arguments=arguments).unsafe == ()
    for name, value in arguments.items():
        with pytest.raises(ValidationError, match=f"unsafe_arguments.{name} = .* does not change what is sampled"):
            VllmSettings(unsafe_arguments={name: value})


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_a_value_of_another_type_than_those_named_never_passes(name):
    if HARMLESS[name]:
        assert not is_harmless(name, object())


def test_a_deadline_is_a_multiple_of_the_slowest_time_seen_within_its_bounds():
    patience = Patience(60.0, 900.0)
    assert patience.seconds == 900  # the first time may include compilation
    patience.saw(0.02)
    assert patience.seconds == 60
    patience.saw(12.0)
    patience.saw(0.1)
    assert patience.seconds == 120
    patience.saw(300.0)
    assert patience.seconds == 900


def test_the_guide_names_every_argument_that_passes():
    page = (Path(__file__).parents[4] / "docs" / "how-to" / "vllm.md").read_text()
    assert [name for name in HARMLESS if f"`{name}`" not in page] == []
