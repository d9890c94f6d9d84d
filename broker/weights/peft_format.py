"""Names and configuration of a LoRA adapter in PEFT's file format, shared by learner and actors. No tensors.

    <directory>/adapter_config.json, adapter_model.safetensors

`adapter_model.safetensors` holds `base_model.model.<module>.lora_A.weight` (r, in) and `….lora_B.weight` (out, r) of
every adapted module, whose matrix is then W + (lora_alpha / r) · B · A. PEFT and vLLM load such a directory unchanged.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from broker.plain_files import read_plain

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
CONFIG_BYTES = 1 << 20
_NAME = re.compile(r"base_model\.model\.(.+)\.(lora_[AB])\.weight")


class AdapterConfig(BaseModel):
    """Content of adapter_config.json. Keys that would change the formula above must have their neutral value; keys not
    listed here are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    peft_type: Literal["LORA"] = "LORA"
    task_type: str | None = "CAUSAL_LM"
    base_model_name_or_path: str | None = None
    r: Annotated[int, Field(ge=1, le=1 << 16)]
    lora_alpha: Annotated[float, Field(gt=0, le=1e6)]
    target_modules: list[str]
    inference_mode: bool = True
    lora_dropout: float = 0.0
    bias: Literal["none"] = "none"
    fan_in_fan_out: Literal[False] = False
    use_rslora: Literal[False] = False
    use_dora: Literal[False] = False
    modules_to_save: None = None
    rank_pattern: Annotated[dict[str, int], Field(max_length=0)] = {}
    alpha_pattern: Annotated[dict[str, float], Field(max_length=0)] = {}

    @property
    def scale(self) -> float:
        """The factor of B · A: lora_alpha / r."""
        return self.lora_alpha / self.r


def is_adapter(directory: Path) -> bool:
    """Whether the directory holds an adapter instead of a whole model."""
    return (directory / CONFIG).is_file()


def read_config(directory: Path) -> AdapterConfig:
    """The adapter's configuration. Raises OSError, or ValueError for another kind or unsupported features."""
    return AdapterConfig.model_validate_json(read_plain(directory / CONFIG, CONFIG_BYTES))


def tensor_name(module: str, factor: str) -> str:
    """The name in the file of a module's `factor`, `lora_A` or `lora_B`."""
    return f"base_model.model.{module}.{factor}.weight"


def module_and_factor(name: str) -> tuple[str, str]:
    """(module, `lora_A` or `lora_B`) of a tensor's name in the file. Raises ValueError for any other name."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is not of the form {tensor_name('<module>', 'lora_A')!r}")
    return found[1], found[2]
