"""PEFT's format of a LoRA adapter, as far as names and numbers go: what learner and actors must agree on. No tensors.

    <directory>/adapter_config.json, adapter_model.safetensors

The second holds `base_model.model.<module>.lora_A.weight` (r, in) and `….lora_B.weight` (out, r) of every adapted
module, which computes with W + (lora_alpha / r) · B · A. PEFT and vLLM load such a directory as it is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"base_model\.model\.(.+)\.(lora_[AB])\.weight")


class AdapterConfig(BaseModel):
    """adapter_config.json. Keys that change the formula above must say that they do not; others are not looked at."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    peft_type: Literal["LORA"] = "LORA"
    task_type: str | None = "CAUSAL_LM"
    base_model_name_or_path: str | None = None
    r: Annotated[int, Field(ge=1)]
    lora_alpha: Annotated[float, Field(gt=0)]
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
        """The factor of B · A."""
        return self.lora_alpha / self.r


def is_adapter(directory: Path) -> bool:
    """Whether the directory holds an adapter rather than whole weights."""
    return (directory / CONFIG).is_file()


def read_config(directory: Path) -> AdapterConfig:
    """The adapter's configuration. Raises OSError, or ValueError for one of another kind or with other features."""
    return AdapterConfig.model_validate_json((directory / CONFIG).read_bytes())


def tensor_name(module: str, factor: str) -> str:
    """The name of a module's `lora_A` or `lora_B` in the file."""
    return f"base_model.model.{module}.{factor}.weight"


def module_and_factor(name: str) -> tuple[str, str]:
    """(module, lora_A | lora_B) of a tensor in the file. Raises ValueError for any other name."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is not of the form {tensor_name('<module>', 'lora_A')!r}")
    return found[1], found[2]
