"""What the pages name exists: files, headings, metrics, keys, places in the code; and their lines fit a screen."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from deploy.config.tree import Config
from docs.generators import metrics
from docs.generators.configuration import sections
from tests.docs.pages import GENERATED, PAGES, ROOT, STUDIES, anchors, links, name_of, prose

RULES = ROOT / "deploy/prometheus/rules.yml"


@pytest.fixture(scope="session")
def metric_names() -> set[str]:
    """Every name that a service exports, with the suffixes that its type adds."""
    names = set()
    for found in metrics.registries().values():
        for name, kind, *_ in found:
            suffixes = {"counter": ("", "_total"), "histogram": ("", "_bucket", "_sum", "_count")}.get(kind, ("",))
            names |= {name + suffix for suffix in suffixes}
    return names


@pytest.mark.parametrize("page", [*PAGES, RULES], ids=name_of)
def test_every_metric_that_is_named_exists(page: Path, metric_names: set[str]) -> None:
    text = page.read_text(encoding="utf-8")
    shown = set(re.findall(r'(?:Counter|Gauge|Histogram)\("(\w+)"', text))  # declared by an example on the page itself
    for name in set(re.findall(r"\bsieve_[a-z_]+\b", text)) - shown - {"sieve_learner_"}:
        assert name in metric_names, f"{page.name} names {name}, which no service exports"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {path}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name} links to {path}#{anchor}, a heading that is not there"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in STUDIES], ids=name_of)
def test_lines_fit_120_characters_except_rows_of_tables(page: Path) -> None:
    text = prose(page) if page in GENERATED else page.read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        assert len(line) <= 120 or line.startswith("|") or "<!--" in line, (
            f"{page.name}:{number}: {len(line)} characters"
        )


def test_the_navigation_names_every_page_once() -> None:
    class Loader(yaml.SafeLoader):
        pass

    tree = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=Loader)

    def leaves(value: object) -> list[str]:
        if isinstance(value, str):
            return [value]
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return [leaf for part in parts for leaf in leaves(part)]

    named = leaves(tree["nav"])
    there = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.is_relative_to(ROOT / "docs")]
    assert sorted(named) == sorted(there)


@cache
def known_keys() -> set[str]:
    """Every path of the configuration tree, of sections and of keys, `<name>` for a name of the user's."""

    def walk(model: type, path: str) -> set[str]:
        found = set()
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]
            key = f"{path}{name}"
            found.add(key)
            for below in sections(field.annotation):
                entry = f"{key}.<name>" if "dict" in str(field.annotation) else key
                found |= {entry} | walk(below, f"{entry}.")
        return found

    return walk(Config, "")


@pytest.mark.parametrize("page", [page for page in PAGES if page not in GENERATED], ids=name_of)
def test_every_key_that_is_named_exists(page: Path) -> None:
    keys, roots = known_keys(), "|".join(Config.model_fields)
    for name in set(re.findall(rf"`((?:{roots})\.[a-z_.<>]+?)`", prose(page))):
        head = re.sub(r"^verifier\.serve\.(?!<)[a-z]+", "verifier.serve.<name>", name)
        free = head.startswith(("verifier.serve.<name>.options.", "actor.vllm.arguments."))
        is_file = name.rsplit(".", 1)[-1] in {"json", "jsonl", "yaml", "py", "md", "lock"}
        is_module = (ROOT / name.split(".")[0]).is_dir() and (ROOT / Path(*name.split(".")[:2])).exists()
        assert head in keys or free or is_file or is_module, f"{page.name} names the key {name}"


def walks() -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """The walks of docs/architecture.md: title, then (file, names said to be in it) of each step."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    found = []
    for part in re.split(r"^### ", text[text.index("## Three walks") :], flags=re.M)[1:]:
        steps = re.findall(r"^\d+\. \[[^\]]+\]\(\.\./([^)#]+)\)(.*?)(?=^\S|\Z)", part, re.M | re.S)
        found.append((part.splitlines()[0], [(file, re.findall(r"`([\w.]+)`", rest)) for file, rest in steps]))
    return found


def test_the_walks_need_at_most_four_files_each_and_name_places_that_are_there() -> None:
    assert len(walks()) == 3
    for title, steps in walks():
        assert 1 <= len({file for file, _ in steps}) <= 4, f"{title}: {steps}"
        for file, names in steps:
            text = (ROOT / file).read_text(encoding="utf-8")
            assert names, f"{title}: no place named in {file}"
            missing = [name for name in names if name.rsplit(".", 1)[-1] not in text]
            assert not missing, f"{title}: {missing} not in {file}"
