"""`python -m docs.generators [--check]`: write docs/reference's generated pages, or name those that are not current."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from docs.generators import commands, configuration, exit_codes, metrics, status, step_record, wire

REFERENCE = Path(__file__).parents[1] / "reference"
PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": configuration.page,
    "metrics.md": metrics.page,
    "commands.md": commands.page,
    "exit-codes.md": exit_codes.page,
    "status.md": status.page,
    "step-record.md": step_record.page,
    "wire.md": wire.page,
}
"""The generated pages, by file name in docs/reference."""


def main(arguments: list[str]) -> int:
    """Write the pages. With `--check` nothing is written; returns 1 when a page on disk differs from the code."""
    stale = 0
    for name, make in PAGES.items():
        path, text = REFERENCE / name, make()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if "--check" in arguments:
            print(f"docs/reference/{name} is not current; run `make docs`")
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote docs/reference/{name}")
    return int(stale > 0 and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
