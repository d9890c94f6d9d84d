"""Markdown of the generated pages: filled paragraphs, tables, and the note at the top of each page."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 120


def fill(text: str, indent: str = "") -> str:
    """`text` as one paragraph of lines of at most 120 characters; code spans and links stay in one piece."""
    kept = re.sub(r"`[^`]+`", lambda found: found[0].replace(" ", "\u00a0"), " ".join(text.split()))
    lines = textwrap.wrap(
        kept, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    # textwrap breaks at ASCII blanks only, so the no-break ones above held code spans together.
    return "\n".join(lines).replace("\u00a0", " ")


def prose(docstring: str) -> str:
    """A docstring as Markdown: paragraphs filled, indented blocks kept as they are."""
    blocks = re.split(r"\n\s*\n", textwrap.dedent(docstring).strip("\n").rstrip())
    return "\n\n".join(block if block.startswith("    ") else fill(plain(block)) for block in blocks)


def plain(text: str) -> str:
    """A docstring's text for a reader of YAML: `null` for None; `<` outside code spans is no tag."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(
        piece if piece.startswith("`") else re.sub(r"\b(None|null)\b", "`null`", piece).replace("<", "&lt;")
        for piece in pieces
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; `|` inside cells is escaped, line breaks become blanks."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(plain(cell).split()).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *(line(row) for row in rows)])


def document(title: str, source: str, introduction: str, parts: Iterable[str]) -> str:
    """A whole page: title, a comment that names what it is generated from, an introduction and the parts."""
    note = f"<!-- Generated from {source} by `python -m docs.generators`; change the source, not this file. -->"
    return "\n\n".join([f"# {title}", note, prose(introduction), *parts]) + "\n"
