"""The settings of the actor, and the modules that importing the service must not import."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from actor.engine import ModelUnusable
from actor.settings import ActorSettings
from broker.settings import ModelSettings

BASE = Path(__file__).parents[2] / "examples" / "countdown" / "base"


@pytest.mark.parametrize(
    "change", [{"engine": "other"}, {"max_batch": 0}, {"device": "tpu"}, {"threads": -1}, {"nothing": 1}]
)
def test_settings_that_cannot_work_are_refused(change):
    with pytest.raises(ValidationError):
        ActorSettings.model_validate(change)


def test_a_missing_cuda_device_is_named_with_the_remedy():
    from actor.engines.torch.model import device_of

    assert device_of("cpu").type == "cpu"
    with pytest.raises(
        ModelUnusable, match=r"actor.device = cuda:77, but torch sees \d+ CUDA devices: use auto or cpu"
    ):
        device_of("cuda:77")


@pytest.mark.parametrize(
    ("file", "content"), [("model.safetensors", b"half of it"), ("config.json", b"{}"), ("tokenizer.json", b"{")]
)
def test_a_model_that_cannot_be_read_is_named(tmp_path, file, content):
    from actor.engines.torch.model import device_of, open_model

    shutil.copytree(BASE, tmp_path / "model")
    (tmp_path / "model" / file).write_bytes(content)
    with pytest.raises(ModelUnusable, match=str(tmp_path / "model")):
        open_model(ModelSettings(path=tmp_path / "model"), device_of("cpu"), 64)


@pytest.mark.slow
def test_the_service_module_imports_neither_torch_nor_transformers():
    code = "import actor.service, sys; print([m for m in ('torch', 'transformers', 'ray', 'vllm') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
