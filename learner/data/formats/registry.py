"""The formats that `data.format` may name, and their converters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from learner.data.formats import apps, humaneval, kodcode, livecodebench, mbpp, primeintellect
from learner.data.formats.fields import Converted, Fields

VERIFIER = "python"
"""The verifier of every format's records."""

CONVERTERS: dict[str, Callable[[Fields], Converted]] = {
    "apps": apps.convert,
    "taco": apps.convert,
    "livecodebench": livecodebench.convert,
    "mbpp": mbpp.convert,
    "humaneval": humaneval.convert,
    "kodcode": kodcode.convert,
    "primeintellect": primeintellect.convert,
}


def convert(name: str, body: Mapping[str, Any]) -> Converted:
    """The prompt and record of a row in the format `name`. Raises NotOfFormat, which names the field and the remedy."""
    return CONVERTERS[name](Fields(body))
