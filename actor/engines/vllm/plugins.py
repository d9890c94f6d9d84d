"""Entry points through which other packages run code inside vLLM.

vLLM loads the logits processors of every installed package without being asked, and the plugins of its other groups
unless VLLM_PLUGINS excludes them. Each can change what is sampled. Reads the metadata of installed packages only: no
plugin is imported here.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from importlib.metadata import entry_points

PROCESSORS = "vllm.logits_processors"
GROUPS = (PROCESSORS, "vllm.general_plugins", "vllm.platform_plugins", "vllm.stat_logger_plugins")
"""The groups that AsyncLLM and its workers load."""


def loaded_by_vllm() -> dict[str, str]:
    """The entry points of other packages that vLLM would load: `<group>:<name>` → the object it names."""
    chosen = os.environ.get("VLLM_PLUGINS")
    found = {}
    for group in GROUPS:
        for entry in entry_points(group=group):
            own = entry.value.split(":")[0].split(".")[0] == "vllm"
            excluded = group != PROCESSORS and chosen is not None and entry.name not in chosen.split(",")
            if not own and not excluded:
                found[f"{group}:{entry.name}"] = entry.value
    return found


def refuse_plugins(allowed: Collection[str]) -> None:
    """Raise ValueError for the first entry point that vLLM would load and `allowed` does not name, or the reverse."""
    found = loaded_by_vllm()
    for name, value in sorted(found.items()):
        if name not in allowed:
            group = name.split(":")[0]
            exclude = "" if group == PROCESSORS else ", set VLLM_PLUGINS to the names of those to load"
            raise ValueError(
                f"an installed package registers {value} for {group}, which vLLM loads and which can change what is "
                f"sampled: uninstall that package{exclude}, or list {name} in actor.vllm.unsafe_plugins"
            )
    for name in sorted(set(allowed) - set(found)):
        raise ValueError(
            f"actor.vllm.unsafe_plugins names {name}, which vLLM would not load here "
            f"(it would load: {', '.join(sorted(found)) or 'none'}): remove it, or install its package"
        )
