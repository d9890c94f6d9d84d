"""MkDocs hook: links from the pages to files of the repository lead to copies of them inside the site.

On a forge `[take.lua](../broker/queue/lua/take.lua)` opens the file. The built site has no repository beside it, so
each linked file becomes a page of its own under `source/`, and each linked folder a list of its files.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
LANGUAGES = {".py": "python", ".lua": "lua", ".yaml": "yaml", ".yml": "yaml", ".jsonl": "json", ".md": "markdown"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file and folder of the repository that a page links to."""
    for page in list(files.documentation_pages()):
        for target, _ in LINK.findall(page.content_string):
            path = _outside(page.src_uri, target)
            if path is not None and files.get_file_from_path(_place(path)) is None:
                made = File.generated(config, _place(path), content=_content(path), inclusion=InclusionLevel.NOT_IN_NAV)
                files.append(made)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that leave docs/ to the copies."""

    def lead(found: re.Match[str]) -> str:
        path = _outside(page.file.src_uri, found[1])
        return found[0] if path is None else _between(page.file.src_uri, _place(path))

    return LINK.sub(lead, markdown)


def _outside(page: str, target: str) -> PurePosixPath | None:
    """The repository path that a page's link names, None where it stays inside docs/ or names nothing."""
    if target.startswith("/"):
        return None
    path = (ROOT / "docs" / page).parent.joinpath(target).resolve()
    if not path.exists() or path.is_relative_to(ROOT / "docs") or not path.is_relative_to(ROOT):
        return None
    return PurePosixPath(path.relative_to(ROOT).as_posix())


def _place(path: PurePosixPath) -> str:
    return f"source/{path}{'/index' if (ROOT / path).is_dir() else ''}.md"


def _between(page: str, place: str) -> str:
    return "../" * (len(PurePosixPath(page).parts) - 1) + place


def _content(path: PurePosixPath) -> str:
    """The page of one file or folder; left out of the search index, which is about the documentation."""
    head = f"---\ntitle: {path}\nsearch: {{exclude: true}}\nhide: [toc]\n---\n\n# `{path}`\n\n"
    if (ROOT / path).is_dir():
        entries = sorted(entry for entry in (ROOT / path).iterdir() if not entry.name.startswith((".", "__pycache__")))
        return head + "\n".join(f"- `{entry.name}{'/' * entry.is_dir()}` {_summary(entry)}" for entry in entries)
    text = (ROOT / path).read_text(encoding="utf-8", errors="replace")
    fence = "`" * max(4, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f'{head}{fence} {{.{LANGUAGES.get(path.suffix, "text")} linenums="1"}}\n{text.rstrip()}\n{fence}\n'


def _summary(path: Path) -> str:
    """The first sentence of a Python file's or package's docstring."""
    file = path / "__init__.py" if path.is_dir() else path
    if file.suffix != ".py" or not file.is_file():
        return ""
    text = " ".join((ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split())
    return re.split(r"(?<=[.:;])\s", text, maxsplit=1)[0]
