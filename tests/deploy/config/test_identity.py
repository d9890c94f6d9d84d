"""Settings with which a run is another run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.config.load import load
from learner.start import fingerprint_of


def test_unsafe_settings_of_the_actors_are_part_of_the_runs_identity(
    tree: dict[str, Any], write: Callable[[Any], Path]
) -> None:
    found = set()
    for vllm in (
        {},
        {"unsafe_arguments": {"quantization": "fp8"}},
        {"unsafe_arguments": {"quantization": "awq"}},
        {"unsafe_plugins": ["vllm.general_plugins:quantization"]},
    ):
        config = load(write({**tree, "actor": {"vllm": vllm}}), environment={}, check="none")
        assert len(config.unsafe) == len(vllm)
        found.add(fingerprint_of(config, [], []))
    assert len(found) == 4
    harmless = load(write({**tree, "actor": {"vllm": {"arguments": {"block_size": 32}}}}), environment={}, check="none")
    assert fingerprint_of(harmless, [], []) in found
