"""The pages under test and their parts: fenced and indented blocks, links, headings."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
STUDIES = (ROOT / "docs/frontier.md", ROOT / "docs/staleness.md")
"""Pages that `sieve report` writes."""
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if not page.name.endswith(".notes.md")),
    *sorted(ROOT.glob("examples/*/README.md")),
]
GENERATED = [page for page in PAGES if "<!-- Generated from" in page.read_text(encoding="utf-8")]
_FENCE = re.compile(r"(?:<!-- (?P<note>[^>]*) -->\n)?^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```", re.M | re.S)
_INDENTED = re.compile(r"(?:^|\n\n)((?:    [^\n]*\n?|\n(?=    ))+)")


def name_of(page: Path) -> str:
    """The page's path from the repository's root; the id of a test."""
    return str(page.relative_to(ROOT))


@dataclass(frozen=True)
class Block:
    """One fenced block. `note` is the comment on the line above it: `example: FILE`, `not run`, or empty."""

    page: Path
    language: str
    note: str
    text: str


def fenced(page: Path, language: str) -> list[Block]:
    """The page's fenced blocks of one language."""
    found = _FENCE.finditer(page.read_text(encoding="utf-8"))
    return [
        Block(page, match["language"], match["note"] or "", match["text"])
        for match in found
        if match["language"] == language
    ]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def shell_lines(page: Path) -> Iterator[str]:
    """Lines of the page's indented blocks, which show commands; comments after ` #` are cut off."""
    for block in _INDENTED.findall(prose(page)):
        for line in textwrap.dedent(block).splitlines():
            yield re.split(r"\s+#\s", line, maxsplit=1)[0].strip()


def links(page: Path) -> list[tuple[str, str]]:
    """(path, anchor) of every link that does not lead to another site; the path is empty within the page."""
    found = re.findall(r"\]\((?!https?:)([^)\s#]*)(?:#([^)\s]*))?\)", prose(page))
    return [(path, anchor) for path, anchor in found if path or anchor]


def anchors(page: Path) -> set[str]:
    """The anchors of the page's headings, as Python-Markdown and the forges make them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "") for heading in headings]
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in plain}
